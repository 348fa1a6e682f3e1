//! Decides which format a file has. Only [`decide`] judges the name of a file.
//!
//! A file read in the wrong format would train a model on the wrong text without an error. DDK therefore refuses
//! unknown names, and the reason says what to do.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a pointer of Git LFS begins, and what to do about it.
pub(crate) const LFS: &str = "version https://git-lfs";
pub(crate) const IS_LFS: &str =
    "a pointer of Git LFS, not the file itself: run `git lfs pull` in its repository";

/// How a file holds its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileFormat {
    /// JSON Lines: each line is a record.
    Jsonl,
    /// JSON: each element of an array is a record, or each object of several.
    Json,
    /// Apache Parquet: each row is a record.
    Parquet,
    /// Arrow IPC (file or stream format): each row is a record.
    Arrow,
    /// Comma-separated values with a row of column names: each row is a record.
    Csv,
    /// Tab-separated values with a row of column names: each row is a record.
    Tsv,
    /// Megatron's indexed datasets (`.idx` and `.bin`): token ids.
    Megatron,
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
    let (compression, inner) = match extension(path).as_deref() {
        Some("gz") => (Compression::Gzip, path.with_extension("")),
        Some("zst") => (Compression::Zstd, path.with_extension("")),
        _ => (Compression::None, path.to_owned()),
    };
    for extension in [extension(path), extension(&inner)].into_iter().flatten() {
        if OTHER_COMPRESSIONS.contains(&&*extension) {
            return Err(format!(
                "`.{extension}` files are not read: unpack them; only `.gz` and `.zst` are read compressed"
            ));
        }
    }
    let records = match given {
        Some(given) => given,
        None => by_name(&inner)?,
    };
    match (records, compression) {
        (_, Compression::None) => {}
        (FileFormat::Parquet, _) => {
            return Err("Parquet files are already compressed inside: unpack this one".to_owned());
        }
        (FileFormat::Megatron, _) => {
            return Err("Megatron's files are not read compressed: unpack this one".to_owned());
        }
        _ => {}
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
    Ok(match &*extension {
        "jsonl" | "ndjson" | "jsonlines" | "ldjson" => FileFormat::Jsonl,
        "json" => FileFormat::Json,
        "parquet" => FileFormat::Parquet,
        "arrow" | "feather" | "ipc" => FileFormat::Arrow,
        "csv" => FileFormat::Csv,
        "tsv" => FileFormat::Tsv,
        text if TEXT_EXTENSIONS.contains(&text) => FileFormat::Text,
        "idx" | "bin" => {
            return Err(format!(
                "`.{extension}` is no known extension: for Megatron's indexed data, set `format = \"megatron\"` and \
                 `tokenizer` in the domain's table"
            ));
        }
        _ => {
            return Err(format!(
                "`.{extension}` is not a known extension of records, text or source code"
            ));
        }
    })
}

/// The part after the last dot, in lowercase, if it is UTF-8. Any other name is refused like one without an extension.
fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

/// The name of a file without its extensions of format and compression.
pub(crate) fn stem(path: &Path) -> PathBuf {
    let inner = match extension(path).as_deref() {
        Some("gz" | "zst") => path.with_extension(""),
        _ => path.to_owned(),
    };
    PathBuf::from(inner.file_stem().unwrap_or_default())
}

/// Whether a file of a Megatron pair holds the tokens, not the index.
pub(crate) fn is_data(path: &Path) -> bool {
    let extension = path.extension();
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("bin"))
}

/// Returns the index and the data file of a Megatron pair, whichever of both is given.
pub(crate) fn pair(path: &Path) -> [PathBuf; 2] {
    if is_data(path) {
        [path.with_extension("idx"), path.to_owned()]
    } else {
        [path.to_owned(), path.with_extension("bin")]
    }
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
        use FileFormat::{Arrow, Csv, Json, Jsonl, Parquet, Text, Tsv};
        for (name, expected) in [
            ("a.jsonl", (Jsonl, None)),
            ("a.b.jsonl.gz", (Jsonl, Gzip)),
            ("d.json/a.jsonl.zst", (Jsonl, Zstd)),
            ("A.JSONL.GZ", (Jsonl, Gzip)),
            ("a.ndjson", (Jsonl, None)),
            ("a.jsonlines", (Jsonl, None)),
            ("a.json", (Json, None)),
            ("a.Json.Zst", (Json, Zstd)),
            ("a.parquet", (Parquet, None)),
            ("a.Parquet", (Parquet, None)),
            ("a.arrow", (Arrow, None)),
            ("a.feather", (Arrow, None)),
            ("a.ipc.gz", (Arrow, Gzip)),
            ("a.csv", (Csv, None)),
            ("a.tsv.zst", (Tsv, Zstd)),
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
            ("a.jsonl.bz2", "only `.gz` and `.zst`"),
            ("a.tar.gz", "`.tar` files are not read"),
            ("a.parquet.gz", "compressed inside"),
            ("a.pdf", "`.pdf` is not a known extension"),
            ("a.xml", "`.xml` is not a known extension"),
            ("a.bin", "format = \"megatron\""),
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
        assert!(decide(Path::new("a.idx.gz"), Some(FileFormat::Megatron)).is_err());
    }

    #[test]
    fn a_stem_has_no_extension_of_format_or_compression() {
        for (name, expected) in [
            ("humaneval.jsonl.gz", "humaneval"),
            ("d/A.JSONL.ZST", "A"),
            ("v1.0.csv", "v1.0"),
            ("LICENSE", "LICENSE"),
        ] {
            assert_eq!(stem(Path::new(name)), Path::new(expected));
        }
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
