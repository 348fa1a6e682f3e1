//! The sources of the kernels.

/// A file of kernels, which are compiled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The losses.
    Loss,
    /// What a layer does between its matmuls.
    Layers,
}

impl Source {
    /// All sources.
    pub const ALL: [Self; 2] = [Self::Loss, Self::Layers];

    /// The name of the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss.cu",
            Self::Layers => "layers.cu",
        }
    }

    /// The text to compile.
    pub fn text(self) -> String {
        let own = match self {
            Self::Loss => include_str!("../kernels/loss.cu"),
            Self::Layers => include_str!("../kernels/layers.cu"),
        };
        format!("{}\n{own}", include_str!("../kernels/device.h"))
    }

    /// The names of its kernels.
    pub fn kernels(self) -> &'static [&'static str] {
        match self {
            Self::Loss => &[
                "ddk_cross_entropy",
                "ddk_forward_kl",
                "ddk_reverse_kl",
                "ddk_jsd",
                "ddk_skew_kl",
                "ddk_skew_reverse_kl",
                "ddk_total_variation",
            ],
            Self::Layers => &[
                "ddk_rms_norm_f32",
                "ddk_norm_backward_f32",
                "ddk_norm_weight_f32",
                "ddk_silu_mul_f32",
                "ddk_silu_mul_backward_f32",
                "ddk_rotate_f32",
                "ddk_rms_norm_bf16",
                "ddk_norm_backward_bf16",
                "ddk_norm_weight_bf16",
                "ddk_silu_mul_bf16",
                "ddk_silu_mul_backward_bf16",
                "ddk_rotate_bf16",
            ],
        }
    }
}
