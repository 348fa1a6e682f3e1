//! Causal self-attention: multi-head, grouped-query (Ainslie et al., "GQA"), or multi-query (Shazeer, "Fast
//! transformer decoding").

use ddk_torch::{flash_attention_of_sequences, padded, takes_gpu_path, to_device};
use tch::{Kind, TchError, Tensor};

use super::{Linear, Norm, Tables, fused, rotary::rotate};
use crate::{
    ModelError, Parts,
    parameters::{Initial, Parameters},
    spec::{ArchitectureSpec, AttentionSpec, Projections},
};

#[derive(Debug)]
pub(crate) struct Attention {
    design: AttentionSpec,
    inputs: Inputs,
    qk_norm: Option<(Norm, Norm)>,
    output: Linear,
}

#[derive(Debug)]
enum Inputs {
    Separate { q: Linear, k: Linear, v: Linear },
    Fused(Linear),
}

/// Keys and values of the cached positions, `[B, K, S, E]`. Empty at first.
#[derive(Debug, Default)]
pub(crate) struct LayerCache(Option<(Tensor, Tensor)>);

impl Attention {
    pub(crate) fn new(
        parameters: &mut Parameters<'_>,
        name: &str,
        design: &ArchitectureSpec,
    ) -> Result<Self, ModelError> {
        let (attention, width) = (design.attention.clone(), design.hidden_size);
        let initial = Initial::Normal(design.initializer_range);
        let (q, kv) = attention.widths();
        let mut linear = |part: &str, shape, bias| {
            Linear::new(parameters, &format!("{name}.{part}"), shape, bias, initial)
        };
        let inputs = match attention.projections {
            Projections::Separate { bias } => Inputs::Separate {
                q: linear("q_proj", [q, width], bias)?,
                k: linear("k_proj", [kv, width], bias)?,
                v: linear("v_proj", [kv, width], bias)?,
            },
            Projections::Fused => Inputs::Fused(linear("c_attn", [q + 2 * kv, width], true)?),
        };
        let (output, bias) = (design.names.attention_output, attention.output_bias);
        let output = linear(output, [width, q], bias)?;
        let mut norm = |part: &str, kind| {
            let name = format!("{name}.{part}");
            Norm::new(parameters, &name, attention.head_dim, kind)
        };
        let qk_norm = match attention.qk_norm {
            Some(kind) => Some((norm("q_norm", kind)?, norm("k_norm", kind)?)),
            None => None,
        };
        Ok(Self {
            design: attention,
            inputs,
            qk_norm,
            output,
        })
    }

    /// Computes attention, `[B, T, D]` to `[B, T, D]`. Parts do not attend to each other. With a cache, `x_btd`
    /// follows the cached positions. If the whole sequence is there, no mask is needed: attention is causal.
    pub(crate) fn forward(
        &self,
        x_btd: &Tensor,
        rotary: Option<&Tables>,
        parts: Option<&Parts>,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor, TchError> {
        let (heads, num_key_value_heads, head_dim) = self.design.sizes();
        let (batch, time) = (x_btd.size()[0], x_btd.size()[1]);
        let [mut q_bhte, mut k_bkte, mut v_bkte] = self.project(x_btd)?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q_bhte = q_norm.forward(&q_bhte)?;
            k_bkte = k_norm.forward(&k_bkte)?;
        }
        if let Some(tables) = rotary {
            for x in [&mut q_bhte, &mut k_bkte] {
                // SAFETY: the projection or the norm just created `x`, and only this function and the graph hold it.
                // Tables are written once, when they are created.
                *x = match unsafe { fused::rotate(x, tables)? } {
                    Some(rotated) => rotated,
                    None => rotate(x, tables)?,
                };
            }
        }
        if let Some(cache) = cache {
            if let Some((keys, values)) = cache.0.take() {
                k_bkte = Tensor::f_cat(&[&keys, &k_bkte], 2)?;
                v_bkte = Tensor::f_cat(&[&values, &v_bkte], 2)?;
            }
            cache.0 = Some((k_bkte.shallow_clone(), v_bkte.shallow_clone()));
        }
        let before = k_bkte.size()[2] - time;
        let mut mask = None;
        if before > 0 {
            // Building a plan for each generated token would take longer than everything else.
            let length = padded(before + time, x_btd.device());
            let padding = [0, 0, 0, length - before - time];
            // "Causal" aligns the first query with the first key, which is right only if nothing is cached.
            if time > 1 || padding[3] > 0 {
                let ones = Tensor::f_ones([time, length], (Kind::Bool, x_btd.device()))?;
                mask = Some(ones.f_tril(before)?);
            }
            if padding[3] > 0 {
                k_bkte = k_bkte.f_constant_pad_nd(padding)?;
                v_bkte = v_bkte.f_constant_pad_nd(padding)?;
            }
        }
        let attend = |q: &Tensor, k: &Tensor, v: &Tensor| {
            Tensor::f_scaled_dot_product_attention(
                q,
                k,
                v,
                mask.as_ref(),
                0.0,
                before == 0,
                self.design.scale,
                heads != num_key_value_heads,
            )
        };
        let mixed_bhte = match parts {
            Some(parts) if takes_gpu_path(x_btd.device()) => {
                let scale = self.design.scale;
                end_to_end(parts, [&q_bhte, &k_bkte, &v_bkte], scale, attend)?
            }
            Some(parts) => each_part(parts, [&q_bhte, &k_bkte, &v_bkte], attend)?,
            None => attend(&q_bhte, &k_bkte, &v_bkte)?,
        };
        let mixed_btd = mixed_bhte
            .f_transpose(1, 2)?
            .f_reshape([batch, time, heads * head_dim])?;
        self.output.forward(&mixed_btd)
    }

    /// See [`crate::Model::weights_changed`].
    pub(crate) fn weights_changed(&self) {
        match &self.inputs {
            Inputs::Separate { q, k, v } => [q, k, v].into_iter().for_each(Linear::weights_changed),
            Inputs::Fused(all) => all.weights_changed(),
        }
        self.output.weights_changed();
    }

    /// Projects to queries `[B, H, T, E]`, and to keys and values `[B, K, T, E]`.
    fn project(&self, x_btd: &Tensor) -> Result<[Tensor; 3], TchError> {
        let (heads, num_key_value_heads, head_dim) = self.design.sizes();
        let (batch, time) = (x_btd.size()[0], x_btd.size()[1]);
        let split = |x: &Tensor, heads: i64| {
            x.f_reshape([batch, time, heads, head_dim])?
                .f_transpose(1, 2)
        };
        match &self.inputs {
            Inputs::Separate { q, k, v } => Ok([
                split(&q.forward(x_btd)?, heads)?,
                split(&k.forward(x_btd)?, num_key_value_heads)?,
                split(&v.forward(x_btd)?, num_key_value_heads)?,
            ]),
            Inputs::Fused(c_attn) => {
                // Each group of heads has its queries first, then its key, then its value.
                let queries = heads / num_key_value_heads;
                let shape = [batch, time, num_key_value_heads, queries + 2, head_dim];
                let all = c_attn.forward(x_btd)?.f_reshape(shape)?;
                let part = |start, count| all.f_narrow(3, start, count);
                Ok([
                    split(&part(0, queries)?, heads)?,
                    split(&part(queries, 1)?, num_key_value_heads)?,
                    split(&part(queries + 1, 1)?, num_key_value_heads)?,
                ])
            }
        }
    }
}

/// Computes attention within each part of each sequence. On the CPU this is faster than a mask over the whole
/// sequence, because nothing is computed and then thrown away.
fn each_part(
    parts: &Parts,
    qkv: [&Tensor; 3],
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor, TchError>,
) -> Result<Tensor, TchError> {
    let mut rows = Vec::with_capacity(parts.len());
    for (row, lengths) in (0..).zip(parts) {
        let (mut mixed, mut start) = (Vec::with_capacity(lengths.len()), 0);
        for &length in lengths {
            let part = |x: &Tensor| x.f_narrow(0, row, 1)?.f_narrow(2, start, length);
            mixed.push(attend(&part(qkv[0])?, &part(qkv[1])?, &part(qkv[2])?)?);
            start += length;
        }
        rows.push(Tensor::f_cat(&mixed, 2)?);
    }
    Tensor::f_cat(&rows, 0)
}

/// The GPU version of [`each_part`]. Lays the parts of all sequences end to end, so that one call handles all of
/// them, whatever their lengths.
fn end_to_end(
    parts: &Parts,
    [q, k, v]: [&Tensor; 3],
    scale: Option<f64>,
    attend: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor, TchError>,
) -> Result<Tensor, TchError> {
    let lengths = parts.iter().flatten().copied();
    let lengths: Vec<i64> = lengths.filter(|&length| length > 0).collect();
    let positions_first = |x: &Tensor| x.f_transpose(1, 2)?.f_flatten(0, 1);
    let (q_nhe, k_nke) = (positions_first(q)?, positions_first(k)?);
    let v_nke = positions_first(v)?;
    let mixed_nhe = if has_flash_attention(q) {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        let starts: Vec<i32> = [0].into_iter().chain(ends).map(|at| at as i32).collect();
        let starts = to_device(Tensor::f_from_slice(&starts)?, q.device())?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        flash_attention_of_sequences([&q_nhe, &k_nke, &v_nke], &starts, longest, scale)?
    } else {
        // One part at a time: flash attention supports neither fp32 nor the CPU.
        let (mut mixed, mut start) = (Vec::with_capacity(lengths.len()), 0);
        for length in lengths {
            let heads_first = |x: &Tensor| x.f_narrow(0, start, length)?.f_transpose(0, 1);
            let part = |x: &Tensor| heads_first(x)?.f_unsqueeze(0);
            let of_part = attend(&part(&q_nhe)?, &part(&k_nke)?, &part(&v_nke)?)?;
            mixed.push(of_part.f_squeeze_dim(0)?.f_transpose(0, 1)?);
            start += length;
        }
        Tensor::f_cat(&mixed, 0)?
    };
    let (batch, heads, time, width) = q.size4()?;
    mixed_nhe
        .f_reshape([batch, time, heads, width])?
        .f_transpose(1, 2)
}

/// Whether libtorch's flash attention supports sequences of these queries `[B, H, T, E]`.
fn has_flash_attention(q: &Tensor) -> bool {
    let width = q.size().last().copied().unwrap_or(0);
    q.device().is_cuda()
        && matches!(q.kind(), Kind::BFloat16 | Kind::Half)
        && width % 8 == 0
        && width <= 256
}
