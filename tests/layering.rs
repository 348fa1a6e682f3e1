//! Checks that dependencies go one way: between the crates of the workspace, and between the files of each crate.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Crates in layers. A crate may depend only on crates in earlier layers.
const LAYERS: &[&[&str]] = &[
    &[
        "ddk-cpp",
        "ddk-files",
        "ddk-kernel",
        "ddk-order",
        "ddk-serving",
    ],
    &["ddk-cuda"],
    &[
        "ddk-torch",
        "ddk-corpus",
        "ddk-hub",
        "ddk-labels",
        "ddk-mixture",
        "ddk-run",
    ],
    &[
        "ddk-distributed",
        "ddk-model",
        "ddk-objective",
        "ddk-settings",
        "ddk-report",
    ],
    &["ddk-engine", "ddk-telemetry"],
    &["ddk-actors"],
    &["ddk-jobs"],
    &["ddk"],
];

/// Forbidden whatever the layers: the code that controls a run must not depend on tensors.
const NEVER: &[(&str, &[&str])] = &[(
    "ddk-actors",
    &["ddk-torch", "ddk-model", "ddk-objective", "ddk-engine"],
)];

/// Maximum number of files in an import cycle.
const LARGEST_CYCLE: usize = 3;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folders of the workspace's crates.
fn crates() -> Vec<PathBuf> {
    let inner = fs::read_dir(root().join("crates")).unwrap();
    let inner = inner.map(|entry| entry.unwrap().path());
    let folders = inner.chain([root().join("actors"), root().to_owned()]);
    let mut folders: Vec<PathBuf> = folders
        .filter(|folder| folder.join("Cargo.toml").exists())
        .collect();
    folders.sort();
    folders
}

/// A crate's name and the workspace crates that it is built with.
fn manifest(folder: &Path) -> (String, BTreeSet<String>) {
    let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&text).unwrap();
    let name = manifest["package"]["name"].as_str().unwrap().to_owned();
    let tables = ["dependencies", "build-dependencies"].map(|table| manifest.get(table));
    let names = tables.into_iter().flatten();
    let names = names.flat_map(|table| table.as_table().unwrap().keys().cloned());
    let ours = names.filter(|name| name.starts_with("ddk-"));
    (name, ours.collect())
}

#[test]
fn crates_depend_on_the_layers_below_them() {
    let layer = |name: &str| {
        let found = LAYERS.iter().position(|layer| layer.contains(&name));
        found.unwrap_or_else(|| panic!("give {name} a place in LAYERS"))
    };
    let mut wrong = Vec::new();
    for (name, dependencies) in crates().iter().map(|folder| manifest(folder)) {
        let never = NEVER.iter().filter(|(of, _)| *of == name);
        let never: Vec<&str> = never.flat_map(|(_, never)| never.iter().copied()).collect();
        for dependency in dependencies {
            if layer(&dependency) >= layer(&name) || never.contains(&dependency.as_str()) {
                wrong.push(format!("{name} depends on {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The module paths and sources of a crate's files. The root's path is `[]`.
fn sources(root: &Path) -> Vec<(Module, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let inside = path.strip_prefix(root).unwrap().with_extension("");
                let names = inside
                    .iter()
                    .map(|name| name.to_string_lossy().into_owned());
                let mut module: Module = names.collect();
                if matches!(module.last().unwrap().as_str(), "lib" | "main" | "mod") {
                    module.pop();
                }
                found.push((module, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found
}

/// The words and symbols of the code, without comments, literals, and `#[cfg(test)]` modules (which come last in
/// their files).
fn words(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let (mut words, mut rest) = (Vec::new(), code);
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\") {
            3
        } else if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let word = &rest[..length];
        let is_code = !first.is_whitespace() && !word.starts_with("//") && first != '"';
        if is_code {
            words.push(word.to_owned());
        }
        rest = &rest[length..];
    }
    words
}

/// All paths in a file, with the braces of `use a::{b, c::d}` expanded, and whether each is in a `use`.
fn paths(words: &[String]) -> Vec<(bool, Vec<String>)> {
    let (mut paths, mut prefixes) = (Vec::new(), Vec::<Option<Vec<String>>>::new());
    let (mut path, mut after_colons, mut in_use) = (Vec::<String>::new(), false, false);
    for word in words {
        let is_name = word.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        if word == "::" {
            after_colons = true;
            continue;
        }
        if is_name && after_colons {
            path.push(word.clone());
        } else if word == "{" && after_colons {
            prefixes.push(Some(std::mem::take(&mut path)));
        } else {
            // The path ends before this word.
            if !path.is_empty() {
                let open = prefixes.iter().flatten().flatten().cloned();
                paths.push((in_use, open.chain(std::mem::take(&mut path)).collect()));
            }
            match word.as_str() {
                "{" => prefixes.push(None),
                "}" => drop(prefixes.pop()),
                "use" => in_use = true,
                ";" => in_use = false,
                _ if is_name => path.push(word.clone()),
                _ => {}
            }
        }
        after_colons = false;
    }
    paths
}

type Module = Vec<String>;

/// The files of a crate, with all paths in each.
struct Files(BTreeMap<Module, Vec<(bool, Vec<String>)>>);

impl Files {
    fn new<'a>(sources: impl Iterator<Item = (Module, &'a str)>) -> Self {
        Self(
            sources
                .map(|(module, source)| (module, paths(&words(source))))
                .collect(),
        )
    }

    /// The file that defines the target of a path in a module's file, if that file is in this crate.
    fn resolve(&self, module: &Module, path: &[String], depth: usize) -> Option<Module> {
        let child = |name: &String| [module, std::slice::from_ref(name)].concat();
        let mut target = match path.first()?.as_str() {
            "crate" => Vec::new(),
            "self" | "super" => module.clone(),
            // A child by its bare name: `use child::Item`.
            _ if path.len() > 1 && self.0.contains_key(&child(&path[0])) => module.clone(),
            _ => return None,
        };
        for (index, name) in path.iter().enumerate() {
            match name.as_str() {
                "crate" | "self" => continue,
                "super" => drop(target.pop()),
                _ => target.push(name.clone()),
            }
            if self.0.contains_key(&target) {
                continue;
            }
            // An item, which the module may only re-export.
            let item = target.pop();
            let passed_on = self.0.get(&target)?.iter().find(|(in_use, other)| {
                *in_use
                    && other.len() > 1
                    && other.last() == item.as_ref()
                    && other != &path[index..]
            });
            let further = passed_on.filter(|_| depth > 0);
            let further = further.and_then(|(_, other)| self.resolve(&target, other, depth - 1));
            return Some(further.unwrap_or(target));
        }
        Some(target)
    }

    /// For each file, the files that it imports from.
    fn imports(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let of = |(module, paths): (&Module, &Vec<(bool, Vec<String>)>)| {
            let long = paths.iter().filter(|(_, path)| path.len() > 1);
            let targets = long.filter_map(|(in_use, path)| {
                let target = self.resolve(module, path, 8)?;
                // A module's file may call into its children, but not import from them.
                (*in_use || !target.starts_with(module)).then_some(target)
            });
            let others = targets.filter(|target| target != module);
            (module.clone(), others.collect())
        };
        self.0.iter().map(of).collect()
    }
}

/// The groups of files in which each imports from every other, directly or indirectly.
fn cycles(edges: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<Module>> {
    let reachable = |from: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = next.pop() {
            for target in edges.get(&module).into_iter().flatten() {
                if seen.insert(target.clone()) {
                    next.push(target.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<_, _> = edges.keys().map(|from| (from, reachable(from))).collect();
    let groups: BTreeSet<Vec<Module>> = reached
        .iter()
        .map(|(from, to)| {
            let back = |other: &&Module| reached.get(other).is_some_and(|of| of.contains(*from));
            to.iter().filter(back).cloned().collect()
        })
        .collect();
    groups.into_iter().filter(|group| group.len() > 1).collect()
}

#[test]
fn few_files_import_each_other_in_a_circle() {
    let mut wrong = Vec::new();
    for folder in crates() {
        let sources = sources(&folder.join("src"));
        let sources = sources
            .iter()
            .map(|(module, source)| (module.clone(), source.as_str()));
        let (name, _) = manifest(&folder);
        for group in cycles(&Files::new(sources).imports()) {
            if group.len() > LARGEST_CYCLE {
                let names: Vec<String> = group.iter().map(|module| module.join("::")).collect();
                wrong.push(format!("{name}: {}", names.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_all_their_forms() {
    let module = |name: &str| -> Module {
        let parts = name.split("::").filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    };
    let found = |of: &str, source: &str| -> Vec<String> {
        let root = "mod a;\npub use a::Thing;\npub use d::{Other, f};\nstruct Root;";
        let others = [
            ("a", "mod b;"),
            ("a::b", ""),
            ("a::c", ""),
            ("d", ""),
            ("e", ""),
        ];
        let others = others.into_iter().chain([("", root)]);
        let all = others.filter(|(name, _)| *name != of).chain([(of, source)]);
        let files = Files::new(all.map(|(name, source)| (module(name), source)));
        let found = &files.imports()[&module(of)];
        found.iter().map(|module| module.join("::")).collect()
    };
    assert_eq!(
        found("a", "use crate::{d::{self, X}, e};\nuse std::fs;"),
        ["d", "e"]
    );
    assert_eq!(found("a", "mod b;\npub use self::b::Thing;"), ["a::b"]);
    assert_eq!(found("a", "mod b;\npub use b::Thing;"), ["a::b"]);
    assert_eq!(found("a", "mod b;"), [""; 0]);
    assert_eq!(
        found("a::b", "use super::{c::X, Y};\nfn f() {}"),
        ["a", "a::c"]
    );
    assert_eq!(found("a", "fn f() { let x = crate::d::g(1); }"), ["d"]);
    assert_eq!(
        found("d", "// use crate::e;\nconst T: &str = \"crate::a\";"),
        [""; 0]
    );
    assert_eq!(found("a::b", "use super::super::e::Z;"), ["e"]);
    // An item that the root only re-exports counts as an import from the file that defines it.
    assert_eq!(
        found("e", "use crate::{Other, Root, Thing};"),
        ["", "a", "d"]
    );
    let ring = |to: &str| BTreeSet::from([module(to)]);
    let edges = BTreeMap::from([
        (module("a"), ring("d")),
        (module("d"), ring("e")),
        (module("e"), ring("a")),
        (module("a::b"), ring("a")),
    ]);
    assert_eq!(cycles(&edges), [["a", "d", "e"].map(module).to_vec()]);
}

#[test]
fn the_files_that_the_guide_names_exist() {
    let guide = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let code = guide.split('`').skip(1).step_by(2);
    let is_path = |text: &&str| text.contains('/') && !text.contains(['{', ' ', ':']);
    let paths: Vec<&str> = code
        .filter(is_path)
        .filter(|path| !path.contains("NAME"))
        .collect();
    assert!(paths.len() > 30);
    for path in paths {
        assert!(root().join(path).exists(), "{path} does not exist");
    }
}
