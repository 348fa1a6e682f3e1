//! Decides which format a file has. Only [`decide`] judges the name of a file.
//!
//! A file read in the wrong format would train a model on the wrong text without an error. DDK therefore refuses
//! unknown names, and the reason says what to do.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a file holds its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// JSON Lines: each line is a record.
    Jsonl,
    /// Apache Parquet: each row is a record.
    Parquet,
    /// The whole file is one document.
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A file's format and compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Format {
    pub(crate) records: FileFormat,
    pub(crate) compression: Compression,
}

/// Extensions of text and source code, in lowercase. A file with one of them, in any letter case, is one document.
/// docs/corpora.md repeats this table.
#[rustfmt::skip]
pub const TEXT_EXTENSIONS: &[&str] = &[
    // Prose and markup
    "adoc", "asciidoc", "bib", "htm", "html", "markdown", "md", "mdx", "org", "rst", "tex", "text",
    "textile", "txt", "xhtml",
    // Source code
    "ada", "adb", "ads", "agda", "asm", "awk", "bash", "bat", "bzl", "c", "c++", "cc", "cjs", "clj",
    "cljs", "cmake", "coffee", "cpp", "cr", "cs", "css", "cu", "cuh", "cxx", "d", "dart", "el",
    "elm", "erl", "ex", "exs", "f", "f03", "f08", "f90", "f95", "fish", "for", "fs", "fsx", "glsl",
    "go", "gradle", "groovy", "h", "h++", "hh", "hlsl", "hpp", "hrl", "hs", "hxx", "idr", "inl",
    "ipp", "java", "jl", "js", "jsx", "kt", "kts", "lean", "less", "lhs", "lisp", "lua", "m", "mjs",
    "mk", "ml", "mli", "mm", "nim", "nix", "pas", "php", "pl", "pm", "proto", "ps1", "pxd", "py",
    "pyi", "pyx", "r", "rb", "rkt", "rs", "s", "sass", "scala", "scm", "scss", "sh", "sol", "sql",
    "sv", "svelte", "swift", "tcl", "tf", "thrift", "ts", "tsx", "v", "vb", "vhd", "vhdl", "vim",
    "vue", "wgsl", "zig", "zsh",
    // Configuration
    "cfg", "conf", "ini", "properties", "toml", "yaml", "yml",
];

/// Names without an extension that mean one document, in lowercase. DDK ignores what follows a hyphen: `LICENSE-MIT`.
#[rustfmt::skip]
pub const TEXT_NAMES: &[&str] = &[
    "authors", "build", "changelog", "changes", "containerfile", "contributing", "contributors",
    "copying", "copyright", "dockerfile", "doxyfile", "gemfile", "gnumakefile", "history",
    "install", "jenkinsfile", "justfile", "kconfig", "licence", "license", "maintainers",
    "makefile", "news", "notice", "rakefile", "readme", "thanks", "todo", "vagrantfile",
    "workspace",
];

/// Extensions of compressed and archived files that DDK does not read.
const OTHER_COMPRESSIONS: &[&str] = &[
    "7z", "br", "bz2", "lz", "lz4", "lzma", "rar", "snappy", "tar", "tbz2", "tgz", "txz", "xz",
    "z", "zip", "zstd",
];

/// Returns the format of a file by its name, or why DDK refuses the file and what to do. `given` is the domain's
/// `format`: it overrides the extension, but not the compression.
pub(crate) fn decide(path: &Path, given: Option<FileFormat>) -> Result<Format, String> {
    let (compression, inner) = match extension(path) {
        Some("gz") => (Compression::Gzip, path.with_extension("")),
        Some("zst") => (Compression::Zstd, path.with_extension("")),
        _ => (Compression::None, path.to_owned()),
    };
    for extension in [extension(path), extension(&inner)].into_iter().flatten() {
        let lower = extension.to_ascii_lowercase();
        if lower != extension && ["gz", "zst"].contains(&&*lower) {
            return Err(other_case(extension, &lower));
        }
        if OTHER_COMPRESSIONS.contains(&&*lower) {
            return Err(format!(
                "`.{extension}` files are not read: unpack them; only `.gz` and `.zst` are read compressed"
            ));
        }
    }
    let records = match given {
        Some(given) => given,
        None => by_name(&inner)?,
    };
    if records == FileFormat::Parquet && compression != Compression::None {
        return Err("Parquet files are already compressed inside: unpack this one".to_owned());
    }
    Ok(Format {
        records,
        compression,
    })
}

fn by_name(path: &Path) -> Result<FileFormat, String> {
    let Some(extension) = extension(path) else {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.split('-').next().unwrap_or_default();
        return if TEXT_NAMES.contains(&&*stem.to_ascii_lowercase()) {
            Ok(FileFormat::Text)
        } else {
            Err("it has no extension that tells its format".to_owned())
        };
    };
    let lower = extension.to_ascii_lowercase();
    let problem = match (extension, &*lower) {
        ("jsonl", _) => return Ok(FileFormat::Jsonl),
        ("parquet", _) => return Ok(FileFormat::Parquet),
        (_, text) if TEXT_EXTENSIONS.contains(&text) => return Ok(FileFormat::Text),
        (_, "jsonl" | "parquet") => return Err(other_case(extension, &lower)),
        (_, "json") => {
            "files are not read as records: convert it to JSON Lines (.jsonl), for example with `jq -c '.[]'`"
        }
        (_, "ndjson" | "jsonlines" | "ldjson") => {
            "files are not read as records: rename it to `.jsonl` if each line is one JSON object"
        }
        (_, "csv" | "tsv") => {
            "files are not read as records: convert its rows to JSON Lines (.jsonl) or Parquet"
        }
        _ => "is not a known extension of records, text or source code",
    };
    Err(format!("`.{extension}` {problem}"))
}

/// The part after the last dot, if it is UTF-8. Any other name is refused like one without an extension.
fn extension(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}

/// Extensions of records must match exactly, while text matches in any letter case.
fn other_case(extension: &str, lower: &str) -> String {
    format!("`.{extension}` is not `.{lower}`: rename it to end in `.{lower}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Result<(FileFormat, Compression), String> {
        decide(Path::new(name), None).map(|format| (format.records, format.compression))
    }

    #[test]
    fn known_names_have_one_format() {
        use Compression::{Gzip, None, Zstd};
        use FileFormat::{Jsonl, Parquet, Text};
        for (name, expected) in [
            ("a.jsonl", (Jsonl, None)),
            ("a.b.jsonl.gz", (Jsonl, Gzip)),
            ("d.json/a.jsonl.zst", (Jsonl, Zstd)),
            ("a.parquet", (Parquet, None)),
            ("a.txt", (Text, None)),
            ("a.TXT", (Text, None)),
            ("a.py.zst", (Text, Zstd)),
            ("module.R", (Text, None)),
            ("README", (Text, None)),
            ("readme.gz", (Text, Gzip)),
            ("LICENSE-MIT", (Text, None)),
            ("Makefile", (Text, None)),
        ] {
            assert_eq!(of(name), Ok(expected), "{name}");
        }
    }

    #[test]
    fn unknown_names_are_refused_with_what_to_do() {
        for (name, said) in [
            ("a.json", "JSON Lines"),
            ("a.json.gz", "JSON Lines"),
            ("a.JSON", "JSON Lines"),
            ("a.ndjson", "rename it to `.jsonl`"),
            ("a.csv", "convert its rows"),
            ("a.tsv.zst", "convert its rows"),
            ("a.JSONL", "rename it to end in `.jsonl`"),
            ("a.Jsonl.gz", "rename it to end in `.jsonl`"),
            ("a.Parquet", "rename it to end in `.parquet`"),
            ("a.jsonl.GZ", "rename it to end in `.gz`"),
            ("a.jsonl.bz2", "only `.gz` and `.zst`"),
            ("a.tar.gz", "`.tar` files are not read"),
            ("a.parquet.gz", "compressed inside"),
            ("a.pdf", "`.pdf` is not a known extension"),
            ("a.xml", "`.xml` is not a known extension"),
            ("a.gz", "no extension"),
            ("shard-00001", "no extension"),
            (".DS_Store", "no extension"),
        ] {
            let reason = of(name).unwrap_err();
            assert!(reason.contains(said), "{name}: {reason}");
        }
    }

    #[test]
    fn a_given_format_overrides_the_extension_and_not_the_compression() {
        for (name, given) in [
            ("a.json", FileFormat::Jsonl),
            ("a.xml.gz", FileFormat::Text),
            ("shard-00001", FileFormat::Parquet),
            ("a.jsonl", FileFormat::Text),
        ] {
            let format = decide(Path::new(name), Some(given)).unwrap();
            assert_eq!(format.records, given, "{name}");
        }
        let gzipped = decide(Path::new("a.xml.gz"), Some(FileFormat::Text)).unwrap();
        assert_eq!(gzipped.compression, Compression::Gzip);
        assert!(decide(Path::new("a.json.bz2"), Some(FileFormat::Jsonl)).is_err());
        assert!(decide(Path::new("a.parquet.gz"), Some(FileFormat::Parquet)).is_err());
    }

    #[test]
    fn the_tables_are_sorted_lower_case_and_without_doubles() {
        assert!(TEXT_NAMES.windows(2).all(|pair| pair[0] < pair[1]));
        let mut seen = std::collections::BTreeSet::new();
        for extension in TEXT_EXTENSIONS {
            assert_eq!(*extension, extension.to_ascii_lowercase());
            assert!(seen.insert(extension), "{extension} twice");
        }
    }
}
