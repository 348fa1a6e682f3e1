//! The files of the data: each file, each folder, or a data set on the Hub.

use std::path::{Path, PathBuf};

use anyhow::Result;
use ddk_corpus::{Detected, FileFormat, Shape, detect_in};
use ddk_jobs::{hint::Hint, hub, prepare::advise};

use super::names::{held_out_place, is_train};
use crate::cli;

/// A file or folder of the data, with the files in it.
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) is_folder: bool,
    /// Whether it is a data set on the Hub. Its path is then its name there.
    pub(super) is_of_hub: bool,
    /// Other files in the folder, if this is not the whole folder.
    pub(super) beside: Option<Vec<PathBuf>>,
    pub(super) files: Vec<Detected>,
}

impl Entry {
    /// Reads a file or folder. `of_hub`: the local files of the data set on the Hub, if the path names one.
    pub(super) fn read(args: &cli::Init, path: PathBuf, of_hub: Option<&[String]>) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut name = name.into_owned();
        let mut files = if let Some(files) = of_hub {
            name = hub::short_name(&path);
            let found = files.iter().map(|file| detect_in(Path::new(file)));
            let found = found.collect::<Result<Vec<_>, _>>();
            found.map_err(advise).usage()?.concat()
        } else if name.starts_with('.') && path != args.data {
            vec![Detected::skipped(&path, "hidden")]
        } else {
            detect_in(&path).map_err(advise).usage()?
        };
        if let Some(field) = &args.text_field {
            for file in &mut files {
                let of_records = !matches!(
                    file.format,
                    None | Some(FileFormat::Text | FileFormat::Megatron)
                );
                if of_records && file.bad < file.records {
                    file.shape = with_field(file, field);
                    let mut fields = file.fields.iter().zip(&file.texts);
                    let of_field = fields.find(|(name, _)| *name == field);
                    // Within an object, only the preparation counts.
                    file.bad = of_field.map_or(0, |(_, texts)| file.records - texts);
                }
            }
        }
        Ok(Self {
            is_folder: of_hub.is_some() || path.is_dir(),
            is_of_hub: of_hub.is_some(),
            beside: None,
            path,
            name,
            files,
        })
    }

    /// Joins the files in the data's folder that are one document each: alone, none of them is enough for a domain.
    pub(super) fn join_documents(entries: Vec<Self>, data: &Path) -> Vec<Self> {
        let is_document = |entry: &Self| match &entry.files[..] {
            [file] => {
                let is_part = held_out_place(&file.stem()).is_some() || is_train(&file.stem());
                !entry.is_folder && !is_part && file.shape == Ok(Shape::Text)
            }
            _ => false,
        };
        let (documents, mut others): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_document);
        if documents.len() < 2 {
            others.extend(documents);
            others.sort_by(|one, other| one.path.cmp(&other.path));
            return others;
        }
        others.push(Self {
            path: data.to_owned(),
            name: hub::short_name(data),
            is_folder: true,
            is_of_hub: false,
            beside: (!others.is_empty())
                .then(|| others.iter().map(|entry| entry.path.clone()).collect()),
            files: documents
                .into_iter()
                .flat_map(|entry| entry.files)
                .collect(),
        });
        others
    }

    /// Skips a README beside records, which describes them.
    pub(super) fn skip_readmes(&mut self, is_only: bool) {
        let is_records =
            |file: &Detected| matches!(&file.shape, Ok(shape) if *shape != Shape::Text);
        let beside = if self.is_folder {
            self.files.iter().any(is_records)
        } else {
            !is_only
        };
        for file in &mut self.files {
            let is_readme = file.stem().eq_ignore_ascii_case("readme");
            if beside && is_readme && file.shape == Ok(Shape::Text) {
                file.shape = Err("describes the data".to_owned());
            }
        }
    }

    /// The files that have a text, in groups that need the same settings.
    pub(super) fn groups(&self) -> Vec<(Shape, Vec<&Detected>)> {
        let mut groups: Vec<(Shape, Vec<&Detected>)> = Vec::new();
        for file in &self.files {
            let Ok(shape) = &file.shape else { continue };
            match groups.iter_mut().find(|(other, _)| same(other, shape)) {
                Some((of_group, files)) => {
                    // A group needs the mask if one of its files does.
                    if shape.has_prompts() {
                        *of_group = shape.clone();
                    }
                    files.push(file);
                }
                None => groups.push((shape.clone(), vec![file])),
            }
        }
        // Whole texts need no settings, so they join the only records beside them that are texts too.
        let joins = |shape: &Shape| matches!(shape, Shape::Field(_) | Shape::Prompt { .. });
        let texts = groups.iter().position(|(shape, _)| *shape == Shape::Text);
        if let (Some(texts), 2) = (texts, groups.len())
            && joins(&groups[1 - texts].0)
        {
            let (_, files) = groups.remove(texts);
            groups[0].1.extend(files);
            groups[0].1.sort_by(|one, other| one.path.cmp(&other.path));
        }
        groups.sort_by_key(|(_, files)| std::cmp::Reverse(files.len()));
        groups
    }
}

/// Whether two files can be in one domain.
pub(super) fn same(one: &Shape, other: &Shape) -> bool {
    let is_text = |shape: &Shape| *shape == Shape::Text;
    one.settings() == other.settings() && is_text(one) == is_text(other)
}

/// The shape of a file whose text is in a field that the user names.
fn with_field(file: &Detected, field: &str) -> Result<Shape, String> {
    let first = field.split('.').next().unwrap_or_default();
    if file.fields.iter().any(|name| name == first) {
        return Ok(Shape::Field(field.to_owned()));
    }
    Err(format!(
        "no field `{field}`: the fields are `{}`",
        file.fields.join("`, `")
    ))
}
