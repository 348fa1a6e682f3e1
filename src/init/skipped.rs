//! Tables for files that `ddk init` skips because their fields do not say where the text is.

use ddk_corpus::Detected;

use super::{
    entry::Entry,
    names::{domain_name, head, quote},
    patterns::patterns,
};

/// Returns a table for the files of an entry that have the same fields.
pub(super) fn tables(entry: &Entry) -> Vec<String> {
    let mut groups: Vec<(Vec<&str>, Vec<&Detected>)> = Vec::new();
    // Files of a data set on the Hub have no path of their own.
    for file in entry.files.iter().filter(|_| !entry.is_of_hub) {
        let fields = choices(file);
        match groups.iter_mut().find(|(of_group, _)| *of_group == fields) {
            _ if fields.is_empty() => {}
            Some((_, files)) => files.push(file),
            None => groups.push((fields, vec![file])),
        }
    }
    let groups = groups.into_iter();
    groups
        .map(|(fields, files)| table(entry, &fields, &files))
        .collect()
}

/// The fields of a skipped file that hold text and that a template can name.
fn choices(file: &Detected) -> Vec<&str> {
    let is_skipped = file.shape.is_err() && file.bad < file.records;
    let fields = file.fields.iter().zip(&file.texts);
    let texts = fields.filter(|(name, texts)| {
        is_skipped && **texts > 0 && !name.is_empty() && !name.contains(['.', '{', '}', '?', '/'])
    });
    texts.map(|(name, _)| &**name).collect()
}

fn table(entry: &Entry, fields: &[&str], files: &[&Detected]) -> String {
    let stem = files[0].stem();
    let name = if entry.is_folder {
        format!("{}_{stem}", entry.name)
    } else {
        stem
    };
    let reason = files[0].shape.as_ref().err().map_or("", |reason| reason);
    let template = |fields: &[&str]| {
        let fields: Vec<String> = fields.iter().map(|field| format!("{{{field}}}")).collect();
        fields.join("\n")
    };
    let mut text = format!(
        "skipped: {reason}. To train on it, choose fields and uncomment:\n{}text_field = {}\n",
        head(&domain_name(&name), &patterns(entry, files)),
        quote(fields[0])
    );
    if let [prompts @ .., last] = fields
        && let [_, ..] = prompts
    {
        text.push_str(&format!(
            "# or several fields: text_template = {}\n# or a prompt and what to learn after it: prompt_template = {} \
             and text_template = {}\n",
            quote(&template(fields)),
            quote(&(template(prompts) + "\n")),
            quote(&template(&[last]))
        ));
    }
    let lines = text.lines().map(|line| format!("# {line}\n"));
    format!("\n{}", lines.collect::<String>())
}
