//! The command that starts a server that DDK can use.

use std::fmt::Display;

/// The vLLM command that serves `model` for sequences of up to `positions` tokens.
///
/// It reserves one position more: vLLM 0.24 hangs on a sequence that fills its context, if it computes it in chunks.
pub fn command_line(model: &str, positions: usize) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let context = positions.saturating_add(1);
    if model.chars().all(is_plain) {
        return command(model, context);
    }
    command(&format!("'{}'", model.replace('\'', r"'\''")), context)
}

/// The command, where the model and the length of the sequences are not known.
pub(crate) fn any_command() -> String {
    command("MODEL", "TOKENS+1")
}

fn command(model: &str, context: impl Display) -> String {
    format!(
        "vllm serve {model} --runner pooling --convert embed --max-model-len {context} --pooler-config \
         '{{\"task\":\"token_embed\",\"tok_pooling_type\":\"ALL\",\"use_activation\":false}}'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_quoted_for_the_shell_where_it_must_be() {
        assert!(
            command_line("/models/Qwen3-14B", 1)
                .starts_with("vllm serve /models/Qwen3-14B --runner")
        );
        assert!(command_line("my model's", 1).starts_with(r"vllm serve 'my model'\''s' --runner"));
    }
}
