//! Rewrites a configuration that has earlier names of keys and words. Comments, order, and everything that did not
//! change stay as they are.

use toml_edit::{Array, DocumentMut, InlineTable, Item, Key, Table, TableLike, Value};

use crate::{
    Error, Problem, keys,
    keys::names_in,
    layers::check_names,
    renamed::{new_path, was_table, words},
};

/// A configuration with current names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The text of the file.
    pub text: String,
    /// Every change, in words; empty if the file had no earlier names.
    pub changes: Vec<String>,
}

/// Rewrites the text of a configuration file with the current names of all keys and words. `name` is the file's name
/// for errors.
///
/// # Errors
/// If the text is not TOML, if a key is set under both names, if a value cannot be converted, or if the result still
/// has unknown names or wrong types. Then nothing is usable.
pub fn migrate(text: &str, name: &str) -> Result<Migrated, Error> {
    let parsed = text.parse::<DocumentMut>();
    let mut document = parsed.map_err(|error| Error::one(name, error.to_string().trim_end()))?;
    let mut migration = Migration {
        root: document.as_item_mut(),
        changes: Vec::new(),
        problems: Vec::new(),
        name,
    };
    migration.rename_tables();
    let mut found = Vec::new();
    earlier_names(migration.root, &mut Vec::new(), &mut found);
    for path in found {
        migration.rename(&path);
    }
    migration.rename_words();
    migration.report_leftovers();
    let (changes, problems) = (migration.changes, migration.problems);
    Error::unless_none(problems)?;
    let text = document.to_string();
    check_names(&text, name)?;
    Ok(Migrated { text, changes })
}

/// Replaces the values of secret keys, so that the text can be shown. A text that is not TOML comes back empty.
pub fn without_secrets(text: &str) -> String {
    let mut document = text.parse::<DocumentMut>().unwrap_or_default();
    for key in keys().filter(|key| key.secret) {
        let mut segments = key.path.split('.');
        let found = segments.try_fold(document.as_item_mut(), |item, name| child(item, name));
        if let Some(value) = found.and_then(Item::as_value_mut) {
            replace_value(value, "…".into());
        }
    }
    document.to_string()
}

struct Migration<'a> {
    root: &'a mut Item,
    changes: Vec<String>,
    problems: Vec<Problem>,
    name: &'a str,
}

impl Migration<'_> {
    /// Renames each table whose keys all went to one new table. Its header and comments stay in place.
    fn rename_tables(&mut self) {
        let tables: Vec<String> = names_of(self.root);
        for table in tables {
            let Some(item) = child(self.root, &table) else {
                continue;
            };
            let new = names_of(item).into_iter().map(|key| {
                let (_, new) = new_path(&[&table, &key])?;
                new.into_iter().next()
            });
            let new: Option<Vec<String>> = new.collect();
            let Some([first, rest @ ..]) = new.as_deref() else {
                continue;
            };
            let is_old = !names_in(&[]).contains(&table.as_str());
            let is_one = rest.iter().all(|name| name == first);
            if is_old && is_one && child(self.root, first).is_none() {
                self.changes.push(format!("`[{table}]` is now `[{first}]`"));
                for key in names_of_child(self.root, &table) {
                    let new = new_path(&[&table, &key]).and_then(|(_, new)| new.into_iter().last());
                    if let (Some(new), Some(item)) = (new, child(self.root, &table))
                        && new != key
                    {
                        rename_in_place(item, &key, &new);
                        let change = format!("`{table}.{key}` is now `{first}.{new}`");
                        self.changes.push(change);
                    }
                }
                rename_in_place(self.root, &table, first);
            }
        }
    }

    /// Gives a key its current name, in its table or in another one.
    fn rename(&mut self, path: &[String]) {
        let old: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some((pattern, new)) = new_path(&old) else {
            return;
        };
        let ([old_table @ .., old_key], [new_table @ .., new_key]) = (path, &*new) else {
            return;
        };
        let (before, after) = (path.join("."), new.join("."));
        let exists = at(self.root, &new).is_some();
        let converted = at(self.root, path).map(|item| convert(pattern, item));
        if let Some(Err(message)) = converted {
            self.problem(&format!("`{before}` {message}"));
            return;
        }
        if pattern == "teacher.lanes" && exists {
            self.repeat_devices();
        } else if exists {
            self.problem(&format!(
                "`{before}` and `{after}` are both set, but they are the earlier and the current name of one key: \
                 remove one of them"
            ));
            return;
        } else if old_table == new_table {
            if let Some(table) = at(self.root, old_table) {
                rename_in_place(table, old_key, new_key);
            }
        } else if let [table] = new_table {
            self.move_key(old_table, old_key, table, new_key);
        }
        self.changes.push(format!("`{before}` is now `{after}`"));
    }

    /// Moves a key to another table, which is created behind the key's own table if there is none.
    fn move_key(&mut self, from: &[String], old: &str, to: &str, new: &str) {
        let Some(source) = at(self.root, from) else {
            return;
        };
        let Some((key, mut item)) = remove(source, old) else {
            return;
        };
        let mut comment = prefix_of(&key).trim_start().to_owned();
        let is_inline = source.is_value();
        let like = match source {
            Item::Table(table) => {
                let mut like = Table::new();
                like.set_dotted(table.is_dotted());
                like.set_position(table.position());
                // A table that does not exist anymore leaves its comment to its first key.
                if table.is_empty() && !names_in(&[]).contains(&from.concat().as_str()) {
                    let header = table.decor().prefix().and_then(|prefix| prefix.as_str());
                    comment.insert_str(0, header.unwrap_or_default().trim_start());
                    remove(self.root, &from.concat());
                }
                Item::Table(like)
            }
            _ => Item::Value(InlineTable::new().into()),
        };
        if child(self.root, to).is_none() {
            put(self.root, Key::new(to), like);
        }
        let Some(target) = child(self.root, to) else {
            return;
        };
        let mut key = Key::new(new).with_leaf_decor(key.leaf_decor().clone());
        if is_inline || target.is_value() {
            // The spaces of one kind of table would break the other one.
            key.leaf_decor_mut().clear();
            if let Some(value) = item.as_value_mut() {
                value.decor_mut().clear();
            }
        } else {
            key.leaf_decor_mut().set_prefix(comment);
            keep_column(&mut item, new.len() as isize - old.len() as isize);
        }
        put(target, key, item);
    }

    /// Joins `teacher.lanes`, already converted, and `teacher.devices`: each device once per lane, in turn.
    fn repeat_devices(&mut self) {
        let Some(teacher) = child(self.root, "teacher") else {
            return;
        };
        let lanes = remove(teacher, "lanes").and_then(|(_, lanes)| Some(lanes.as_array()?.len()));
        let devices = child(teacher, "devices").and_then(Item::as_value_mut);
        if let (Some(lanes), Some(devices)) = (lanes, devices)
            && let Some(own) = devices.as_array().filter(|_| lanes > 1)
        {
            let names: Vec<&str> = own.iter().filter_map(Value::as_str).collect();
            let repeated: Array = names
                .iter()
                .copied()
                .cycle()
                .take(names.len() * lanes)
                .collect();
            replace_value(devices, repeated.into());
        }
    }

    fn rename_words(&mut self) {
        for (key, old, new) in words() {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            let value = at(self.root, &path).and_then(Item::as_value_mut);
            if let Some(value) = value.filter(|value| value.as_str() == Some(old)) {
                replace_value(value, new.into());
                self.changes
                    .push(format!("`{key}`: `{old}` is now `{new}`"));
            }
        }
    }

    /// Reports the keys that stay in tables which do not exist anymore.
    fn report_leftovers(&mut self) {
        for table in names_of(self.root) {
            if was_table(&table) && !names_in(&[]).contains(&table.as_str()) {
                for key in names_of_child(self.root, &table) {
                    self.problem(&format!(
                        "unknown field `{table}.{key}`: it is no earlier name either, remove it"
                    ));
                }
            }
        }
    }

    fn problem(&mut self, message: &str) {
        self.problems.push(Problem {
            place: self.name.to_owned(),
            message: message.to_owned(),
        });
    }
}

/// Collects the paths of all keys that have an earlier name, in their order.
fn earlier_names(item: &Item, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    for (name, item) in item.as_table_like().into_iter().flat_map(TableLike::iter) {
        path.push(name.to_owned());
        let segments: Vec<&str> = path.iter().map(String::as_str).collect();
        match new_path(&segments) {
            Some(_) => found.push(path.clone()),
            None => earlier_names(item, path, found),
        }
        path.pop();
    }
}

/// Converts a value whose meaning changed with its name.
fn convert(pattern: &str, item: &mut Item) -> Result<(), String> {
    let Some(value) = item.as_value_mut() else {
        return Ok(());
    };
    let shown = value.to_string();
    let shown = shown.trim();
    match pattern {
        "run.stop_ratio" => {
            let number = value.as_float();
            let number = number.or_else(|| value.as_integer().map(|number| number as f64));
            let Some(ratio) = number.filter(|ratio| *ratio > 0.0) else {
                return Err(format!("is {shown}, expected a positive number"));
            };
            replace_value(value, ratio.ln().into());
        }
        "teacher.lanes" => {
            let lanes = value.as_integer().filter(|lanes| (1..=64).contains(lanes));
            let lanes = lanes.and_then(|lanes| usize::try_from(lanes).ok());
            let Some(lanes) = lanes else {
                return Err(format!("is {shown}, expected 1 to 64"));
            };
            let devices: Array = std::iter::repeat_n("cpu", lanes).collect();
            replace_value(value, devices.into());
        }
        _ => {}
    }
    Ok(())
}

/// Replaces a value. Its comment stays, in its column if it can.
fn replace_value(value: &mut Value, mut new: Value) {
    *new.decor_mut() = value.decor().clone();
    let width = |value: &Value| value.to_string().chars().count() as isize;
    let more = width(&new) - width(value);
    let mut item = Item::Value(new);
    keep_column(&mut item, more);
    if let Item::Value(new) = item {
        *value = new;
    }
}

/// Keeps the comment behind a value in its column, after the text before it became longer by `more` characters.
fn keep_column(item: &mut Item, more: isize) {
    let Some(value) = item.as_value_mut() else {
        return;
    };
    let suffix = value.decor().suffix().and_then(|suffix| suffix.as_str());
    let Some(suffix) = suffix.filter(|suffix| suffix.trim_start().starts_with('#')) else {
        return;
    };
    let comment = suffix.trim_start();
    let spaces = (suffix.len() - comment.len()) as isize - more;
    let suffix = format!("{}{comment}", " ".repeat(spaces.max(1) as usize));
    value.decor_mut().set_suffix(suffix);
}

fn rename_in_place(table: &mut Item, old: &str, new: &str) {
    for name in names_of(table) {
        let Some((mut key, mut item)) = remove(table, &name) else {
            continue;
        };
        if name == old {
            let renamed = Key::new(new).with_leaf_decor(key.leaf_decor().clone());
            key = renamed.with_dotted_decor(key.dotted_decor().clone());
            keep_column(&mut item, new.len() as isize - old.len() as isize);
        }
        put(table, key, item);
    }
}

fn names_of(table: &Item) -> Vec<String> {
    let entries = table.as_table_like().into_iter().flat_map(TableLike::iter);
    entries.map(|(name, _)| name.to_owned()).collect()
}

fn names_of_child(table: &Item, name: &str) -> Vec<String> {
    table.get(name).map_or_else(Vec::new, names_of)
}

fn child<'a>(table: &'a mut Item, name: &str) -> Option<&'a mut Item> {
    table.as_table_like_mut()?.get_mut(name)
}

fn at<'a>(root: &'a mut Item, path: &[String]) -> Option<&'a mut Item> {
    path.iter().try_fold(root, |item, name| child(item, name))
}

fn prefix_of(key: &Key) -> &str {
    let prefix = key.leaf_decor().prefix();
    prefix
        .and_then(|prefix| prefix.as_str())
        .unwrap_or_default()
}

fn remove(table: &mut Item, name: &str) -> Option<(Key, Item)> {
    match table {
        Item::Table(table) => table.remove_entry(name),
        Item::Value(Value::InlineTable(table)) => {
            let (key, value) = table.remove_entry(name)?;
            Some((key, Item::Value(value)))
        }
        _ => None,
    }
}

/// Appends a key to a table.
fn put(table: &mut Item, key: Key, item: Item) {
    match table {
        Item::Table(table) => {
            table.insert_formatted(&key, item);
        }
        Item::Value(Value::InlineTable(table)) => {
            if let Ok(value) = item.into_value() {
                table.insert_formatted(&key, value);
            }
        }
        _ => {}
    }
}
