//! Generates text after a prompt, one token at a time, with a KV cache.

use ddk_model::{Cache, Model, ModelError};
use tch::{Kind, Tensor};

use crate::EngineError;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The logits are divided by it; 0 takes the most likely token.
    pub temperature: f64,
    /// Draws only from the most likely tokens that together have this probability; 1 draws from all.
    pub top_p: f64,
    /// The same seed draws the same tokens.
    pub seed: u64,
}

/// A text that is being generated.
#[derive(Debug)]
pub struct Generator<'a> {
    model: &'a Model,
    head: Tensor,
    cache: Cache,
    sampling: Sampling,
    vocabulary: i64,
    /// Tokens that the model reads next.
    unread: Vec<i64>,
    written: u64,
}

impl<'a> Generator<'a> {
    /// Continues `prompt` (at least one token). Tokens are drawn from the first `vocabulary` columns of the logits.
    ///
    /// # Errors
    /// If libtorch cannot cast the LM head to the dtype of the matmuls.
    pub fn new(
        model: &'a Model,
        prompt: &[u32],
        vocabulary: i64,
        sampling: Sampling,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            model,
            head: model.head_for_products()?,
            cache: model.cache(),
            sampling,
            vocabulary,
            unread: prompt.iter().map(|&token| i64::from(token)).collect(),
            written: 0,
        })
    }

    /// Returns the next token, or `None` once the model has no position left.
    ///
    /// # Errors
    /// If the forward pass fails.
    pub fn next_token(&mut self) -> Result<Option<u32>, EngineError> {
        let length = self.cache.positions() + self.unread.len() as i64;
        if self.unread.is_empty() || length > self.model.config().max_positions() {
            return Ok(None);
        }
        let _no_grad = tch::no_grad_guard();
        let logits = self.logits()?;
        let token = if self.sampling.temperature > 0.0 {
            self.draw(&logits)
        } else {
            likeliest(&logits)
        };
        self.unread = vec![i64::from(token)];
        self.written += 1;
        Ok(Some(token))
    }

    /// Reads the unread tokens and returns the logits of the next one.
    fn logits(&mut self) -> Result<Vec<f32>, ModelError> {
        let tokens = Tensor::f_from_slice(&self.unread)?
            .f_unsqueeze(0)?
            .f_to_device(self.model.device())?;
        let hidden = self.model.hidden_after(&mut self.cache, &tokens)?;
        let last = hidden.f_select(1, -1)?;
        let head = self.head.f_narrow(0, 0, self.vocabulary)?;
        let logits = last.f_mm(&head.f_tr()?)?.f_to_kind(Kind::Float)?;
        let logits = logits.f_to_device(tch::Device::Cpu)?.f_view([-1])?;
        Ok(Vec::try_from(&logits)?)
    }

    /// Draws a token in f64. The draw depends on the seed and on the number of the token.
    fn draw(&self, logits: &[f32]) -> u32 {
        let (temperature, top_p) = (self.sampling.temperature, self.sampling.top_p);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| (f64::from(logit - largest) / temperature).exp();
        let weights = (0..).zip(logits).map(|(id, &logit)| (id, weight(logit)));
        let mut weights: Vec<(u32, f64)> = weights.collect();
        weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut kept = 0.0;
        let count = weights
            .iter()
            .position(|(_, weight)| {
                kept += weight;
                kept >= top_p * total
            })
            .map_or(weights.len(), |last| last + 1);
        let weights = &weights[..count];
        let total: f64 = weights.iter().map(|(_, weight)| weight).sum();
        let mut rng = ddk_order::stream(self.sampling.seed, "generate", &[self.written]);
        let mut left = ddk_order::unit(&mut rng) * total;
        for &(id, weight) in weights {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        weights.last().map_or(0, |&(id, _)| id)
    }
}

/// Returns the largest logit's id; of several, the first.
fn likeliest(logits: &[f32]) -> u32 {
    let numbered = (0..).zip(logits.iter().copied());
    let largest = numbered.reduce(|best, next| if next.1 > best.1 { next } else { best });
    largest.map_or(0, |(id, _)| id)
}
