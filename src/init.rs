//! `ddk init`: writes a commented configuration for two models and text: folders, or names on the Hugging Face Hub.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use ddk_corpus::{CorpusError, DomainSource, Limits, Template, field_values, sample};
use ddk_jobs::{
    hint::{Hint, usage, with_hint},
    hub,
    prepare::{advise, fields_hint},
    progress::say,
    suited::Suited,
};
use ddk_model::ModelConfig;
use serde_json::json;

use crate::cli;

/// Writes a commented configuration for two model folders and a folder of text.
///
/// # Errors
/// If the file exists already or cannot be written, or if a model or the text cannot be used.
pub fn run(args: &cli::Init) -> Result<()> {
    if args.out.exists() {
        return Err(anyhow!("{} already exists", args.out.display()))
            .hint("choose another file with --out")
            .usage();
    }
    let folder = hub::model_without_weights(&args.teacher)?;
    let teacher = if is_served(args) {
        ModelConfig::read_served(&folder)
    } else {
        ModelConfig::read(&folder)
    };
    let teacher = teacher.usage()?;
    let student = ModelConfig::read(&hub::model_without_weights(&args.student)?).usage()?;
    let data = args.data.to_string_lossy();
    let files = hub::files(&data)?;
    let places = files.map(|files| (data.into_owned(), files));
    let domains = find_domains(args, places.as_ref())?;
    look_into(&domains, places.as_ref())?;
    let text = render(args, &teacher, &student, &domains)?;
    fs::write(&args.out, text).with_context(|| format!("cannot write {}", args.out.display()))?;
    let (count, out) = (domains.len(), args.out.display());
    say(&format!("{count} domains in {out}; next: ddk check {out}"));
    Ok(())
}

fn is_served(args: &cli::Init) -> bool {
    !args.teacher_server.is_empty()
}

/// The name of a data set on the Hub, and its files on this machine.
type Places = (String, Vec<String>);

/// Returns the domain with local files.
fn local(domain: &DomainSource, places: Option<&Places>) -> DomainSource {
    let mut local = domain.clone();
    if let Some((name, files)) = places
        && local.files[..] == [name.clone()]
    {
        local.files.clone_from(files);
    }
    local
}

/// Finds the domains for the configuration. Each domain has one file or folder. A data set on the Hub is one domain,
/// unless a field tells several apart.
fn find_domains(args: &cli::Init, places: Option<&Places>) -> Result<Vec<DomainSource>> {
    if places.is_some() && args.domain_field.is_none() {
        return Ok(vec![source(args, &hub::short_name(&args.data), &args.data)]);
    }
    if let Some(field) = args.domain_field.as_ref().filter(|_| places.is_some()) {
        return by_field(args, field, places);
    }
    let mut entries = Vec::new();
    let failed = || format!("cannot read {}", args.data.display());
    for entry in fs::read_dir(&args.data).with_context(failed).usage()? {
        let entry = entry.with_context(failed)?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            entries.push(entry.path());
        }
    }
    entries.sort();
    let domains = match &args.domain_field {
        Some(field) => by_field(args, field, None)?,
        None => {
            let of_file = |file: &PathBuf| {
                let name = file.file_stem().unwrap_or_default().to_string_lossy();
                source(args, &name, file)
            };
            entries.iter().map(of_file).collect()
        }
    };
    if domains.is_empty() {
        return Err(anyhow!("{} contains no text", args.data.display())).usage();
    }
    for (index, domain) in domains.iter().enumerate() {
        let mut before = domains[..index].iter();
        if let Some(twin) = before.find(|other| other.name == domain.name) {
            let (one, other, name) = (&twin.files[0], &domain.files[0], &domain.name);
            let message =
                format!("{one} and {other} would both be the domain `{name}`: rename one");
            return Err(anyhow!(message)).usage();
        }
    }
    Ok(domains)
}

fn by_field(args: &cli::Init, field: &str, places: Option<&Places>) -> Result<Vec<DomainSource>> {
    let all = local(&source(args, "data", &args.data), places);
    let values = field_values(&all, field).map_err(not_known)?;
    if values.is_empty() {
        let data = args.data.display();
        return Err(anyhow!("no record in {data} has the field `{field}`")).usage();
    }
    let of_value = |value: String| DomainSource {
        only: Some((field.to_owned(), value.clone())),
        ..source(args, &value, &args.data)
    };
    Ok(values.into_iter().map(of_value).collect())
}

fn source(args: &cli::Init, name: &str, file: &Path) -> DomainSource {
    DomainSource {
        name: domain_name(name),
        files: vec![file.display().to_string()],
        validation_files: Vec::new(),
        format: None,
        text: Template::field(&args.text_field),
        prompt: None,
        chat: None,
        only: None,
        limits: Limits::default(),
    }
}

/// Refuses files of unknown formats, and warns about domains without a usable record.
fn look_into(domains: &[DomainSource], places: Option<&Places>) -> Result<()> {
    let (mut refused, mut warnings) = (Vec::new(), Vec::new());
    for domain in domains {
        match sample(&local(domain, places)) {
            Ok(sample) => {
                if let Some(problem) = sample.problem(&domain.name) {
                    let hint = match &*sample.fields {
                        [] => String::new(),
                        fields => format!("; {}", fields_hint(&domain.name, fields)),
                    };
                    warnings.push(format!("warning: {problem}{hint}"));
                }
            }
            Err(error @ CorpusError::UnknownFormat { .. }) => refused.push(error.to_string()),
            Err(CorpusError::NoFiles { .. }) => warnings.push(format!(
                "warning: domain `{}`: {} contains no files",
                domain.name, domain.files[0]
            )),
            Err(error) => return Err(advise(error)),
        }
    }
    if !refused.is_empty() {
        return Err(anyhow!(refused.join("\n"))).hint(NOT_KNOWN).usage();
    }
    for warning in warnings {
        say(&warning);
    }
    Ok(())
}

const NOT_KNOWN: &str = "convert these files or move them out of the data folder; see docs/corpora.md. To read \
                         them as they are, write the configuration by hand and set `format` in the domain's \
                         table";

fn not_known(error: CorpusError) -> anyhow::Error {
    match error {
        CorpusError::UnknownFormat { .. } => usage(with_hint(error, NOT_KNOWN)),
        _ => advise(error),
    }
}

/// Converts `text` to a name that works as a folder and as a bare key.
fn domain_name(text: &str) -> String {
    let is_allowed = |letter: char| letter.is_alphanumeric() || letter == '-';
    text.replace(|letter| !is_allowed(letter), "_")
}

fn render(
    args: &cli::Init,
    teacher: &ModelConfig,
    student: &ModelConfig,
    domains: &[DomainSource],
) -> Result<String> {
    let name = |model: &Path| domain_name(&hub::short_name(model));
    let positions = teacher.max_positions().min(student.max_positions());
    let is_served = is_served(args);
    // A server needs a context that is one token longer than the sequences.
    let length = (positions - i64::from(is_served)).min(2048);
    let devices = if is_served {
        let servers = toml::Value::from(args.teacher_server.clone());
        format!("servers = {servers}    # one entry per replica; see docs/teachers.md\n")
    } else {
        "# devices = [\"cuda:0\"]    # one entry per replica; \"cuda:0+cuda:1\" spreads one over two GPUs\n".to_owned()
    };
    let of_path = |path: &Path| toml::Value::from(path.display().to_string());
    let (of_teacher, of_student) = (of_path(&args.teacher), of_path(&args.student));
    let mut text = format!(
        "# Written by `ddk init`. Next: ddk check {out}, then ddk train {out}\n\
         # Every key, its default and its meaning: docs/settings.md, or `ddk config schema`.\n\n\
         [run]\nname = \"{student}-from-{teacher}\"\n\
         max_steps = 5000          # or max_tokens, or max_intervals\n\n\
         [corpus]\ndir = \"prepared/{student}-from-{teacher}\"   # the prepared corpus\n\
         sequence_length = {length}    # tokens per sequence\n\
         validation_fraction = 0.05   # share of documents held out, chosen by a hash of their content\n\
         validation_documents = 500\n\n\
         [teacher]\nmodel = {of_teacher}\n{devices}\
         # dtype = \"bf16\"\n\n\
         [student]\nmodel = {of_student}\n\
         # device = \"cuda:1\"\n# dtype = \"bf16\"\n\n\
         [training]\nglobal_batch_size = 16    # sequences per optimizer step\n\
         micro_batch_size = 4      # sequences at a time; fewer need less memory\n\n\
         [optimizer]\nlr = 3e-5                 # the peak, after the warmup\n\n\
         [lr_scheduler]\nwarmup_steps = 100\nmin_lr = 3e-6             # at the end of a cosine\n\n\
         [mixture]\nalpha = 0.5               # 0: all domains equal; 1: no floor\n\
         interval = 500            # steps between updates of the mixture\n\n\
         [objective]\ngamma = 0.2               # loss = CE + gamma KL(teacher, student)\n\n\
         [checkpoint]\ninterval = 500            # steps\n",
        out = args.out.display(),
        teacher = name(&args.teacher),
        student = name(&args.student),
    );
    let of_teacher = (!is_served).then_some(teacher);
    let suited = Suited::here(of_teacher, student, length.unsigned_abs());
    text = suited.write_into(&text, is_served);
    for domain in domains {
        let mut table = json!({ "files": domain.files });
        if args.text_field != "text" {
            table["text_field"] = json!(args.text_field);
        }
        if let Some((field, value)) = &domain.only {
            table["filter_field"] = json!(field);
            if *value != domain.name {
                table["filter_value"] = json!(value);
            }
        }
        let tables = json!({ "domains": { &domain.name: table } });
        text.push_str(&format!("\n{}", toml::to_string(&tables)?));
    }
    Ok(text)
}
