//! ddk
fn main() { let t = tch::Tensor::randn([3,4], (tch::Kind::Float, tch::Device::Cpu)); let _ = anyhow::Ok(t.sum(tch::Kind::Float).double_value(&[]).to_string().len()); }
