//! The demo's text: what set-up itself has put on this disk, collected into one JSONL file a domain.
//!
//! Only files of the packages that this workspace's Cargo.lock names (found through `cargo metadata`), the headers of
//! the libtorch in use and the standard library of Python are read; nothing is downloaded and nothing is shipped.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::hint::Hint;

/// A document shorter than this says little; one longer is mostly a generated table.
const DOCUMENT_BYTES: std::ops::RangeInclusive<u64> = 256..=49_152;

/// What was collected for a domain.
pub struct Collected {
    /// Documents written.
    pub documents: usize,
    /// Bytes of their text.
    pub bytes: u64,
}

/// The places to read from. Each is looked up once, and says what to do where it is absent.
struct Places {
    /// Root folders of the registry's packages, with their `name-version`.
    packages: Vec<(String, PathBuf)>,
    headers: PathBuf,
    python: PathBuf,
}

/// The domains that there are sources for.
pub const NAMES: [&str; 5] = ["cpp", "data", "prose", "python", "rust"];

/// Writes `folder/<domain>.jsonl` for each of the demo's domains named in `limits` (name to bytes at most).
///
/// The choice of documents within the limit depends on the seed and the documents' names alone.
pub fn collect(
    folder: &Path,
    limits: &BTreeMap<String, u64>,
    seed: u64,
) -> Result<BTreeMap<String, Collected>> {
    let places = Places {
        packages: cargo_packages()?,
        headers: libtorch_headers()?,
        python: python_standard_library()?,
    };
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut collected = BTreeMap::new();
    for (domain, &limit) in limits {
        let documents = documents(domain, &places)?;
        let written = write_domain(folder, domain, documents, limit, seed)?;
        collected.insert(domain.clone(), written);
    }
    Ok(collected)
}

/// All candidate files of a domain: a name that is the same on every machine, and the path.
fn documents(domain: &str, places: &Places) -> Result<Vec<(String, PathBuf)>> {
    let of_packages = |extensions: &[&str]| -> Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for (name, root) in &places.packages {
            walk(root, name, extensions, &[], &mut found)?;
        }
        Ok(found)
    };
    let of_folder = |root: &Path, name: &str, extensions: &[&str], without: &[&str]| {
        let mut found = Vec::new();
        walk(root, name, extensions, without, &mut found).map(|()| found)
    };
    match domain {
        "rust" => of_packages(&["rs"]),
        "prose" => of_packages(&["md", "txt"]),
        "data" => of_packages(&["toml", "json", "yml", "yaml"]),
        "cpp" => of_folder(&places.headers, "include", &["h", "hpp", "cuh"], &[]),
        "python" => of_folder(
            &places.python,
            "python",
            &["py"],
            &["site-packages", "dist-packages", "__pycache__"],
        ),
        other => Err(anyhow::anyhow!(
            "the demo has no source for the domain `{other}` (it has cpp, data, prose, python and rust)"
        ))
        .hint("give the domain `files` of your own and run `ddk prepare`, `ddk pretrain` and `ddk train` instead"),
    }
}

fn walk(
    folder: &Path,
    name: &str,
    extensions: &[&str],
    without: &[&str],
    found: &mut Vec<(String, PathBuf)>,
) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let file_name = entry.file_name().to_string_lossy().into_owned();
        let (path, name) = (entry.path(), format!("{name}/{file_name}"));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !without.contains(&file_name.as_str()) {
                walk(&path, &name, extensions, without, found)?;
            }
        } else if kind.is_file()
            && path
                .extension()
                .and_then(|extension| extension.to_str())
                .is_some_and(|extension| extensions.contains(&extension))
            && DOCUMENT_BYTES.contains(&entry.metadata()?.len())
        {
            found.push((name, path));
        }
    }
    Ok(())
}

fn write_domain(
    folder: &Path,
    domain: &str,
    mut documents: Vec<(String, PathBuf)>,
    limit: u64,
    seed: u64,
) -> Result<Collected> {
    documents.sort();
    ddk_order::shuffle(
        &mut documents,
        &mut ddk_order::stream(seed, &format!("demo sources {domain}"), &[]),
    );
    let path = folder.join(format!("{domain}.jsonl"));
    let partial = folder.join(format!("{domain}.jsonl.partial"));
    let failed = || format!("cannot write {}", partial.display());
    let mut out = BufWriter::new(fs::File::create(&partial).with_context(failed)?);
    let mut collected = Collected {
        documents: 0,
        bytes: 0,
    };
    for (name, path) in documents {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        if collected.bytes + text.len() as u64 > limit {
            continue;
        }
        collected.documents += 1;
        collected.bytes += text.len() as u64;
        let record = serde_json::json!({ "text": text, "source": name });
        writeln!(out, "{record}").with_context(failed)?;
    }
    out.flush().with_context(failed)?;
    fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(collected)
}

/// The registry's packages of this workspace's Cargo.lock, never other things in the registry's cache.
fn cargo_packages() -> Result<Vec<(String, PathBuf)>> {
    let advice = "run `ddk demo` in a clone of the repository, with Rust's `cargo` on the PATH: the demo reads the sources of the packages that the clone's Cargo.lock names";
    let metadata = cargo_metadata::MetadataCommand::new()
        .other_options(vec![
            "--locked".to_owned(),
            "--filter-platform".to_owned(),
            format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
        ])
        .exec()
        .context("the sources of the domains rust, prose and data were not found: `cargo metadata` failed")
        .hint(advice)?;
    let mut packages: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| package.source.is_some())
        .filter_map(|package| {
            let root = package.manifest_path.parent()?;
            Some((
                format!("{}-{}", package.name, package.version),
                root.as_std_path().to_owned(),
            ))
        })
        .collect();
    if packages.is_empty() {
        return Err(anyhow::anyhow!(
            "the sources of the domains rust, prose and data were not found: this workspace has no packages"
        ))
        .hint(advice);
    }
    packages.sort();
    Ok(packages)
}

/// The `include` folder beside the libtorch that this program has loaded.
fn libtorch_headers() -> Result<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(Path::new)
        .filter(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"))
        .filter_map(|path| Some(path.parent()?.parent()?.join("include")))
        .find(|folder| folder.is_dir())
        .context("the source of the domain cpp was not found: there is no `include` folder beside the libtorch in use")
        .hint("run `make setup`, or set LIBTORCH to a libtorch folder that has its headers, and build again")
}

fn python_standard_library() -> Result<PathBuf> {
    let advice =
        "install Python 3 (`apt-get install python3`): the demo reads its standard library";
    let output = Command::new("python3")
        .args([
            "-c",
            "import sysconfig; print(sysconfig.get_path('stdlib'))",
        ])
        .output()
        .context("the source of the domain python was not found: `python3` does not start")
        .hint(advice)?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !output.status.success() || !folder.is_dir() {
        return Err(anyhow::anyhow!(
            "the source of the domain python was not found: python3 names {} as its standard library",
            folder.display()
        ))
        .hint(advice);
    }
    Ok(folder)
}
