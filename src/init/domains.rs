//! Finds the domains for a configuration: what each file of the data is, and where its text is.

use std::{
    collections::BTreeMap,
    fs,
    path::{Component, Path},
};

use anyhow::{Context, Result, anyhow};
use ddk_corpus::{Detected, DomainSource, Limits, Shape, Template, field_values};
use ddk_jobs::{hint::Hint, hub, prepare::advise, progress::say};
use ddk_settings::Settings;

use super::{
    entry::{Entry, same},
    found,
    names::{domain_name, head, held_out_place, is_train, list, quote},
    patterns::patterns,
    skipped,
};
use crate::cli;

/// A domain for the configuration.
#[derive(Debug, Clone)]
pub struct FoundDomain {
    /// Its name.
    pub name: String,
    files: Vec<String>,
    /// Files with the documents to validate with, if they are apart.
    validation_files: Vec<String>,
    /// Where the text of its records is.
    pub shape: Shape,
    /// A field and its value that select the records.
    filter: Option<(String, String)>,
    /// Whether it has one document only.
    is_single: bool,
    /// What DDK found.
    note: String,
}

impl FoundDomain {
    /// Its table in the configuration, with a comment that says what DDK found. `has_chats`: whether another domain has
    /// conversations.
    pub fn table(&self, has_chats: bool) -> String {
        let mut text = format!("\n# {}\n", self.note);
        if has_chats && matches!(self.shape, Shape::Prompt { .. }) {
            text.push_str(
                "# These records are not conversations, so DDK does not apply the chat template to them.\n\
                 # To apply it, convert them to `messages`.\n",
            );
        }
        text.push_str(&head(&self.name, &self.files));
        if !self.validation_files.is_empty() {
            text.push_str(&format!(
                "validation_files = {}\n",
                list(&self.validation_files)
            ));
        }
        for (key, value) in self.shape.settings() {
            text.push_str(&format!("{key} = {}\n", quote(&value)));
        }
        if self.shape.needs_tokenizer() {
            text.push_str(
                "# tokenizer = \"DIR\"    # required: the tokenizer that made these ids\n",
            );
        }
        if let Some((field, value)) = &self.filter {
            text.push_str(&format!("filter_field = {}\n", quote(field)));
            if *value != self.name {
                text.push_str(&format!("filter_value = {}\n", quote(value)));
            }
        }
        text
    }
}

/// What DDK found in the data.
#[derive(Debug)]
pub struct Found {
    /// The domains for the configuration.
    pub domains: Vec<FoundDomain>,
    /// Tables of domains for skipped files. The user must choose their fields.
    pub skipped: Vec<String>,
}

/// Finds the domains: one for each file and each folder in the data, or one for each value of `--domain-field`. Prints
/// what DDK made of each file.
///
/// # Errors
/// If the data cannot be read, or contains no text.
pub fn find(args: &cli::Init) -> Result<Found> {
    let mut entries = Vec::new();
    let data = args.data.to_string_lossy();
    let of_hub = hub::files(&data)?;
    if of_hub.is_none() && !args.data.exists() {
        let hint = if data.contains('*') {
            "--data takes no pattern: pass the folder".to_owned()
        } else {
            format!(
                "--data takes a file, a folder, or a data set on the Hugging Face Hub: hf://datasets/{}",
                if is_like_a_repository(&args.data) {
                    &*data
                } else {
                    "ORG/NAME"
                }
            )
        };
        return Err(anyhow!("there is no file or folder {data}"))
            .hint(hint)
            .usage();
    }
    if of_hub.is_some() {
        entries.push(args.data.clone());
    } else if args.data.is_dir() {
        let failed = || format!("cannot read {}", args.data.display());
        for entry in fs::read_dir(&args.data).with_context(failed).usage()? {
            entries.push(entry.with_context(failed)?.path());
        }
        entries.sort();
    } else {
        entries.push(args.data.clone());
    }
    let mut entries = entries
        .into_iter()
        .map(|path| Entry::read(args, path, of_hub.as_deref()))
        .collect::<Result<Vec<_>>>()?;
    entries.retain(|entry| !entry.files.is_empty());
    let is_only = entries.len() == 1;
    for entry in &mut entries {
        entry.skip_readmes(is_only);
    }
    // Documents without fields are in no domain of a field.
    if args.domain_field.is_none() {
        entries = Entry::join_documents(entries, &args.data);
    }
    print(&args.data, &entries);
    let domains = match &args.domain_field {
        Some(field) => by_field(&entries, field)?,
        None => held_out(&args.data, by_entry(&entries)),
    };
    if domains.is_empty() {
        return Err(anyhow!("{} contains no text", args.data.display()))
            .hint(no_text_hint(args, &entries))
            .usage();
    }
    warnings(&domains).iter().for_each(|line| say(line));
    Ok(Found {
        domains,
        skipped: entries.iter().flat_map(skipped::tables).collect(),
    })
}

/// Data with `train` beside `validation` or `test`, and nothing else, is one domain with validation files.
fn held_out(data: &Path, domains: Vec<FoundDomain>) -> Vec<FoundDomain> {
    let is_train = |domain: &&FoundDomain| is_train(&domain.name);
    let mut others = domains.iter().filter(|domain| !is_train(domain));
    let Some(train) = domains.iter().find(is_train) else {
        return domains;
    };
    let are_split = domains.len() > 1
        && others
            .all(|other| held_out_place(&other.name).is_some() && same(&other.shape, &train.shape));
    let mut kept: Vec<&FoundDomain> = domains.iter().filter(|domain| !is_train(domain)).collect();
    kept.sort_by_key(|domain| held_out_place(&domain.name));
    let Some((validation, left_out)) = kept.split_first().filter(|_| are_split) else {
        return domains;
    };
    for domain in left_out {
        say(&format!(
            "left out: {}, which looks like held-out data; DDK validates with `{}`",
            domain.files.join(", "),
            validation.name
        ));
    }
    vec![FoundDomain {
        name: domain_name(&hub::short_name(data)),
        validation_files: validation.files.clone(),
        ..train.clone()
    }]
}

/// Warns about domains that are probably not meant to be trained on, and about those that cannot be.
fn warnings(domains: &[FoundDomain]) -> Vec<String> {
    let held_out = domains.iter().map(|domain| &domain.name);
    let held_out = held_out.filter(|name| held_out_place(name).is_some());
    let held_out = held_out.map(|name| {
        format!(
            "warning: the domain {name} looks like held-out data. To measure with it instead of training on it, set \
             validation_files of another domain to its files, and delete its table"
        )
    });
    let single = domains.iter().filter(|domain| domain.is_single);
    let single = single.map(|domain| {
        format!(
            "warning: the domain {} has one document, but needs another one for validation",
            domain.name
        )
    });
    held_out.chain(single).collect()
}

/// What to do if no file has a text.
fn no_text_hint(args: &cli::Init, entries: &[Entry]) -> String {
    if let Some(field) = &args.text_field {
        return format!(
            "no file has records with the field `{field}` of --text-field; the lines above name their fields"
        );
    }
    let mut files = entries.iter().flat_map(|entry| &entry.files);
    if files.any(|file| file.format.is_some() && !file.fields.is_empty()) {
        "name the field that contains the text with --text-field, or write a domain's text_template (docs/corpora.md)"
            .to_owned()
    } else {
        "the lines above say what each file is; docs/corpora.md lists the formats that DDK reads"
            .to_owned()
    }
}

/// Whether a path has the form of a repository's name: `ORG/NAME`.
fn is_like_a_repository(path: &Path) -> bool {
    let is_plain = |part| matches!(part, Component::Normal(_));
    path.components().count() == 2 && path.components().all(is_plain)
}

/// Prints what DDK made of each file.
fn print(data: &Path, entries: &[Entry]) {
    let (folders, single): (Vec<&Entry>, Vec<&Entry>) =
        entries.iter().partition(|entry| entry.is_folder);
    let single: Vec<&Detected> = single.iter().flat_map(|entry| &entry.files).collect();
    let mut lines = found::lines(data, &single, true);
    for entry in folders {
        let files: Vec<&Detected> = entry.files.iter().collect();
        lines.extend(found::lines(&entry.path, &files, false));
    }
    let most = Settings::default().corpus.max_bad_fraction;
    let files = entries.iter().flat_map(|entry| &entry.files);
    lines.extend(files.flat_map(|file| found::warnings(file, most)));
    lines.iter().for_each(|line| say(line));
}

/// Says what the files of a domain are.
fn note(files: &[&Detected], shape: &Shape) -> String {
    let first = files
        .first()
        .map_or_else(String::new, |file| file.describe());
    let what = match files.len() {
        1 => first,
        count => format!("{count} files, the first: {first}"),
    };
    match shape {
        Shape::Text => what,
        _ => format!("{what}: {}", shape.describe()),
    }
}

fn by_entry(entries: &[Entry]) -> Vec<FoundDomain> {
    let (mut found, mut longer) = (Vec::new(), Vec::new());
    for entry in entries {
        let name = &entry.name;
        let mut groups = entry.groups();
        if entry.is_of_hub && groups.len() > 1 {
            for (shape, files) in groups.drain(1..) {
                say(&format!(
                    "left out: {} with {}; name its files after the data set: {}/FILE",
                    files[0].path.display(),
                    shape.describe(),
                    entry.path.display()
                ));
            }
        }
        for (number, (shape, files)) in groups.iter().enumerate() {
            let stem = files[0].stem();
            // The second names keep two files of one stem apart.
            let names = match (entry.is_folder, number) {
                (false, _) => [stem, name.clone()],
                (true, 0) => [name.clone(), name.clone()],
                (true, _) => [format!("{name}_{stem}"), format!("{name}_{stem}_{number}")],
            };
            let [name, other] = names.map(|name| domain_name(&name));
            longer.push(other);
            found.push(FoundDomain {
                name,
                files: patterns(entry, files),
                validation_files: Vec::new(),
                shape: shape.clone(),
                filter: None,
                is_single: files.iter().all(|file| file.whole)
                    && files.iter().map(|file| file.records).sum::<u64>() == 1,
                note: note(files, shape),
            });
        }
    }
    let names: Vec<String> = found.iter().map(|domain| domain.name.clone()).collect();
    for (domain, longer) in found.iter_mut().zip(longer) {
        let twins = names.iter().filter(|name| **name == domain.name).count();
        if twins > 1 {
            domain.name = longer;
        }
    }
    // Names that are still the same, such as those of `a b.txt` and `a_b.txt`, get a number.
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for domain in &mut found {
        let count = counts.entry(domain.name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            domain.name = format!("{}_{count}", domain.name);
        }
    }
    found
}

fn by_field(entries: &[Entry], field: &str) -> Result<Vec<FoundDomain>> {
    // The shape of most files is that of all domains.
    let mut shapes: Vec<(Shape, Vec<&Detected>)> = Vec::new();
    for (shape, files) in entries.iter().flat_map(Entry::groups) {
        match shapes.iter_mut().find(|(other, _)| same(other, &shape)) {
            Some((_, all)) => all.extend(files),
            None => shapes.push((shape, files)),
        }
    }
    shapes.retain(|(shape, _)| !matches!(shape, Shape::Text | Shape::Megatron));
    shapes.sort_by_key(|(_, files)| std::cmp::Reverse(files.len()));
    let none = || anyhow!("no record has the field `{field}`");
    let Some((shape, files)) = shapes.first() else {
        return Err(none()).usage();
    };
    for (other, left_out) in &shapes[1..] {
        say(&format!(
            "left out: {} files with {}; --domain-field needs the same fields in all files",
            left_out.len(),
            other.describe()
        ));
    }
    let mut patterns_of_all = Vec::new();
    for entry in entries {
        let of_entry = |file: &&&Detected| entry.is_of_hub || file.path.starts_with(&entry.path);
        let files: Vec<&Detected> = files.iter().filter(of_entry).copied().collect();
        if !files.is_empty() {
            patterns_of_all.extend(patterns(entry, &files));
        }
    }
    let paths = files.iter().map(|file| file.path.display().to_string());
    let source = DomainSource {
        name: "data".to_owned(),
        files: paths.collect(),
        validation_files: Vec::new(),
        format: None,
        text: Template::field(field),
        prompt: None,
        chat: None,
        tokens: None,
        only: None,
        limits: Limits::default(),
    };
    let values = field_values(&source, field).map_err(advise)?;
    if values.is_empty() {
        return Err(none()).usage();
    }
    let of_value = |value: String| FoundDomain {
        name: domain_name(&value),
        files: patterns_of_all.clone(),
        validation_files: Vec::new(),
        shape: shape.clone(),
        filter: Some((field.to_owned(), value)),
        is_single: false,
        note: note(files, shape),
    };
    let domains: Vec<FoundDomain> = values.into_iter().map(of_value).collect();
    for (index, domain) in domains.iter().enumerate() {
        let mut before = domains[..index].iter();
        let twin = before.find(|other| other.name == domain.name);
        if let Some(((_, one), (_, other))) = twin
            .and_then(|twin| twin.filter.as_ref())
            .zip(domain.filter.as_ref())
        {
            let name = &domain.name;
            return Err(anyhow!(
                "the values `{one}` and `{other}` of `{field}` would both be the domain `{name}`"
            ))
            .usage();
        }
    }
    Ok(domains)
}
