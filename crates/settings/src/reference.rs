//! Generates docs/settings.md from the declarations.

use crate::sections;

/// The text of docs/settings.md.
pub fn reference() -> String {
    let mut text = String::from(
        "# Settings\n\n\
         Generated from the declarations in `crates/settings/src`. `ddk config schema` prints the JSON schema, \
         `ddk config show --origin CONFIG` the values in use and where each comes from.\n\n\
         Later layers override earlier ones: built-in defaults, the choices of `method`, files in order, the \
         environment (`DDK__OPTIMIZER__LR=1e-4`), `--set optimizer.lr=1e-4`. Tables merge key by key; arrays \
         replace each other. Paths are relative to the folder in which `ddk` is started.\n",
    );
    for section in sections() {
        let may_differ = section.keys.iter().all(|key| key.may_differ);
        // The keys of `[pretrain.NAME]` belong to another run.
        let differs = may_differ && !section.path.starts_with("pretrain");
        let resumes = if differs {
            " A run may resume with other values."
        } else {
            ""
        };
        let title = match section.path.as_str() {
            "" => "Before the first table".to_owned(),
            path => format!(
                "[{}]\n\n{}{resumes}",
                path.replace('*', "NAME"),
                section.doc
            ),
        };
        text.push_str(&format!(
            "\n## {title}\n\n| key | default | description |\n|---|---|---|\n"
        ));
        text.extend(section.keys.iter().map(|key| key.row(may_differ)));
    }
    text
}
