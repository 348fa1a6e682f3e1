//! Llama (Touvron et al., 2023): pre-norm blocks of rotary attention and a gated MLP. Parameter names are those of Hugging
//! Face checkpoints.

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    ModelConfig, ModelError,
    parameters::{Initial, Parameters},
    parts::{Attention, AttentionShape, GatedMlp, RmsNorm, Rotary},
};

#[derive(Debug)]
pub(crate) struct Llama {
    embed_tokens: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// `[V, D]`; the embedding itself where the two are tied.
    pub(crate) lm_head: Tensor,
    rotary: Rotary,
}

#[derive(Debug)]
struct Layer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: GatedMlp,
}

impl Llama {
    pub(crate) fn new(
        config: &ModelConfig,
        parameters: &mut Parameters<'_>,
        device: Device,
        kind: Kind,
    ) -> Result<Self, ModelError> {
        let shape = &config.architecture;
        let (width, eps) = (shape.hidden_size, config.rms_norm_eps);
        let initial = Initial::Normal(config.initializer_range);
        let attention = AttentionShape {
            hidden_size: width,
            heads: shape.num_attention_heads,
            kv_heads: shape.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let embed_tokens = parameters.get(
            "model.embed_tokens.weight".to_owned(),
            &[shape.vocab_size, width],
            initial,
        )?;
        let mut layers = Vec::new();
        for index in 0..shape.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{index}.{part}");
            layers.push(Layer {
                input_layernorm: RmsNorm::new(parameters, &name("input_layernorm"), width, eps)?,
                self_attn: Attention::new(parameters, &name("self_attn"), attention, initial)?,
                post_attention_layernorm: RmsNorm::new(
                    parameters,
                    &name("post_attention_layernorm"),
                    width,
                    eps,
                )?,
                mlp: GatedMlp::new(
                    parameters,
                    &name("mlp"),
                    width,
                    shape.intermediate_size,
                    initial,
                )?,
            });
        }
        let norm = RmsNorm::new(parameters, "model.norm", width, eps)?;
        let lm_head = if shape.tie_word_embeddings {
            embed_tokens.shallow_clone()
        } else {
            let name = "lm_head.weight".to_owned();
            parameters.get(name, &[shape.vocab_size, width], initial)?
        };
        Ok(Self {
            embed_tokens,
            layers,
            norm,
            lm_head,
            rotary: Rotary::new(shape.rope_theta, config.head_dim, device, kind),
        })
    }

    /// Token ids `[B, T]` to hidden states after the final norm `[B, T, D]`.
    pub(crate) fn hidden(&self, tokens_bt: &Tensor) -> Result<Tensor, TchError> {
        let rotary = self.rotary.tables(tokens_bt.size()[1])?;
        let mut x_btd = Tensor::f_embedding(&self.embed_tokens, tokens_bt, -1, false, false)?;
        for layer in &self.layers {
            let normed = layer.input_layernorm.forward(&x_btd)?;
            x_btd = x_btd.f_add(&layer.self_attn.forward(&normed, &rotary)?)?;
            let normed = layer.post_attention_layernorm.forward(&x_btd)?;
            x_btd = x_btd.f_add(&layer.mlp.forward(&normed)?)?;
        }
        self.norm.forward(&x_btd)
    }
}
