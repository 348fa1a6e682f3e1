//! Finds domains that are read together: those that a field tells apart in the same files.

use std::path::PathBuf;

use ddk_files::Swap;

use crate::{
    DomainSource,
    manifest::{MadeFrom, Manifest},
    source::{SourceFile, Use},
};

/// A domain to prepare, or one that is prepared.
pub(crate) struct Member<'a> {
    pub(crate) domain: &'a DomainSource,
    pub(crate) made_from: MadeFrom,
    pub(crate) places: Swap,
    /// The name that its temporary files have for a moment.
    pub(crate) spool: PathBuf,
    /// Its manifest, if it is prepared.
    pub(crate) current: Option<Manifest>,
}

/// Domains that are read together.
pub(crate) struct Group<'a> {
    pub(crate) members: Vec<Member<'a>>,
    /// The same domains.
    pub(crate) domains: Vec<&'a DomainSource>,
    /// Their numbers among all domains.
    pub(crate) numbers: Vec<usize>,
}

/// Groups domains, in the order of each group's first domain. A prepared domain forms a group of its own.
pub(crate) fn groups(members: Vec<Member<'_>>) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    for (number, member) in members.into_iter().enumerate() {
        let fitting = groups.iter_mut().find(|group| group.may_read(&member));
        match fitting {
            Some(group) => group.add(number, member),
            None => groups.push(Group {
                domains: vec![member.domain],
                numbers: vec![number],
                members: vec![member],
            }),
        }
    }
    groups
}

impl<'a> Group<'a> {
    fn add(&mut self, number: usize, member: Member<'a>) {
        self.domains.push(member.domain);
        self.numbers.push(number);
        self.members.push(member);
    }

    /// Whether a domain has the same files, and reads them alike up to the fields of a record.
    fn may_read(&self, other: &Member<'_>) -> bool {
        let of = |member: &Member<'_>| {
            let (domain, made_from) = (member.domain, &member.made_from);
            let is_read = member.current.is_none() && domain.only.is_some();
            // A line is cut at this length before it is parsed.
            let longest = domain.limits.longest;
            is_read.then(|| (made_from.sources.clone(), made_from.format, longest))
        };
        let validation = |member: &Member<'_>| member.made_from.validation_sources.clone();
        self.members.first().is_some_and(|first| {
            of(first).is_some() && of(first) == of(other) && validation(first) == validation(other)
        })
    }

    /// Returns the files in reading order, with the initial use of their documents.
    pub(crate) fn files(&self) -> Vec<(&SourceFile, Use)> {
        let first = self.members.first();
        first.map_or_else(Vec::new, |member| member.made_from.files().collect())
    }

    /// Returns the name of the domain, or a list of the domains.
    pub(crate) fn name(&self) -> String {
        const NAMED: usize = 3;
        let names: Vec<&str> = self
            .domains
            .iter()
            .map(|domain| domain.name.as_str())
            .collect();
        match names.split_at_checked(NAMED) {
            Some((named, rest)) if rest.len() > 1 => {
                format!("{} and {} other domains", named.join(", "), rest.len())
            }
            _ => names.join(", "),
        }
    }
}
