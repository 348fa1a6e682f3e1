//! A model back into a Hugging Face folder.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use tch::{Device, Kind};

use crate::{Model, ModelError, safetensors::write_tensors};

/// Files that are carried over from the folder of the tokenizer, where they are there.
pub const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
];

impl Model {
    /// Writes `config.json`, `model.safetensors`, and what `carry_from` (the folder of the model it began as, or of the
    /// tokenizer) has of tokenizer files and `generation_config.json`. The folder is complete or not there: it is written
    /// beside its place and renamed.
    pub fn save(&self, folder: &Path, carry_from: &Path) -> Result<(), ModelError> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let beside = |suffix: &str| folder.with_file_name(format!(".{name}.{suffix}"));
        let (temporary, old) = (beside("tmp"), beside("old"));
        for left in [&temporary, &old] {
            if left.exists() {
                fs::remove_dir_all(left).map_err(ModelError::io("remove", left))?;
            }
        }
        fs::create_dir_all(&temporary).map_err(ModelError::io("create", &temporary))?;
        let written = self.write(&temporary, carry_from);
        if let Err(error) = written {
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
        if folder.exists() {
            fs::rename(folder, &old).map_err(ModelError::io("replace", folder))?;
        }
        fs::rename(&temporary, folder).map_err(ModelError::io("create", folder))?;
        if old.exists() {
            fs::remove_dir_all(&old).map_err(ModelError::io("remove", &old))?;
        }
        Ok(())
    }

    fn write(&self, folder: &Path, carry_from: &Path) -> Result<(), ModelError> {
        let dtype = match self.parameters().first().map(|(_, tensor)| tensor.kind()) {
            Some(Kind::BFloat16) => "bfloat16",
            Some(Kind::Half) => "float16",
            _ => "float32",
        };
        let config = self.config().to_json(dtype);
        let text = serde_json::to_string_pretty(&config).unwrap_or_default();
        write(&folder.join("config.json"), |out| {
            out.write_all(text.as_bytes())
        })?;
        let _no_grad = tch::no_grad_guard();
        let tensors = self
            .parameters()
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), tensor.detach().f_to_device(Device::Cpu)?)))
            .collect::<Result<Vec<_>, ModelError>>()?;
        write(&folder.join("model.safetensors"), |out| {
            write_tensors(&tensors, &[], out)
        })?;
        for name in TOKENIZER_FILES
            .into_iter()
            .chain(["generation_config.json"])
        {
            let from = carry_from.join(name);
            if from.exists() {
                fs::copy(&from, folder.join(name)).map_err(ModelError::io("copy", &from))?;
            }
        }
        Ok(())
    }
}

fn write(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<(), ModelError> {
    let failed = ModelError::io("write", path);
    let written = File::create(path).and_then(|file| {
        let mut out = BufWriter::new(file);
        contents(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()
    });
    written.map_err(failed)
}
