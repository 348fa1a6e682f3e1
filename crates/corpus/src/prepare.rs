//! Turns sources into prepared folders, and verifies these folders.

use std::fs;

use crate::{
    CorpusError, DomainSource, PrepareOptions, Progress, TokenizerFolder, checksums,
    group::{Group, Member, groups},
    lock::lock,
    manifest::{MadeFrom, Manifest},
    packing::{RowIndex, index_file, write_index},
    stale::stale,
    store::Tokens,
    tokenize::tokenize,
    writing,
};

/// The counts of a prepared domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainReport {
    /// The domain.
    pub domain: String,
    /// Whether this call prepared the domain; false if it was already prepared.
    pub prepared: bool,
    /// Training documents.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
    /// Sequences per epoch.
    pub rows: u64,
    /// Validation documents.
    pub validation_documents: u64,
    /// Documents set aside for validation beyond [`PrepareOptions::validation_documents`], which are not used.
    pub spare: u64,
    /// Exact duplicates left out.
    pub duplicates: u64,
    /// Documents left out because they are too short.
    pub short: u64,
    /// Unusable records.
    pub quarantined: u64,
}

/// Prepares the domains that are missing or stale (with `force`, all of them) and reports on each domain.
///
/// It reads domains that a field tells apart together. It writes a domain to a folder beside the final one, and renames
/// that folder once it is complete and durable. After an interruption, the next call resumes with what was written. If
/// another process is preparing in the same folder, the call waits for it.
///
/// # Errors
/// If a source cannot be used, holds too many bad records or holds too little text. Also if a prepared file cannot be
/// read or written.
pub fn prepare(
    options: &PrepareOptions,
    tokenizer: &TokenizerFolder,
    force: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<DomainReport>, CorpusError> {
    // The prepared folder may be read-only.
    if !force && stale(options, tokenizer)?.is_empty() {
        return as_prepared(options, progress);
    }
    ddk_files::create_folder(&options.folder)?;
    let _lock = lock(&options.folder, progress)?;
    let members = options.domains.iter();
    let members: Vec<Member> = members
        .map(|domain| find(options, domain, tokenizer, force))
        .collect::<Result<_, _>>()?;
    let mut reports = Vec::new();
    for group in groups(members) {
        reports.extend(prepare_group(options, group, tokenizer, progress)?);
    }
    reports.sort_by_key(|(number, _)| *number);
    Ok(reports.into_iter().map(|(_, report)| report).collect())
}

/// Reports on the domains as they are prepared, even if their sources have changed. Writes only missing row indexes;
/// for that, it first waits for any other process that is preparing in the same folder.
///
/// # Errors
/// If a domain is not prepared or has no text for a single sequence, or if a file cannot be read or written or is
/// damaged.
pub fn as_prepared(
    options: &PrepareOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<DomainReport>, CorpusError> {
    let missing = options.domains.iter().any(|domain| {
        let folder = options.folder.join(&domain.name);
        folder.exists() && !index_file(&folder, options.packing, options.sequence_length).exists()
    });
    let _lock = missing
        .then(|| lock(&options.folder, progress))
        .transpose()?;
    let of = |domain: &DomainSource| {
        let manifest = read_manifest(options, domain)?;
        report(options, domain, &manifest, false)
    };
    options.domains.iter().map(of).collect()
}

fn read_manifest(options: &PrepareOptions, domain: &DomainSource) -> Result<Manifest, CorpusError> {
    let manifest = Manifest::read(&options.folder.join(&domain.name))?;
    manifest.ok_or_else(|| CorpusError::NotPrepared {
        domain: domain.name.clone(),
        folder: options.folder.clone(),
    })
}

/// Cleans up after an interrupted process, and finds out whether a domain is prepared. The caller must hold the lock.
fn find<'a>(
    options: &PrepareOptions,
    domain: &'a DomainSource,
    tokenizer: &TokenizerFolder,
    force: bool,
) -> Result<Member<'a>, CorpusError> {
    let made_from = MadeFrom::now(options, domain, tokenizer)?;
    let places = writing::places(&options.folder, &domain.name);
    let spool = writing::spool(&options.folder, &domain.name);
    ddk_files::remove(&spool)?;
    writing::recover(&places, &made_from)?;
    let current = Manifest::read(&places.folder)?;
    let current = current.filter(|manifest| !force && manifest.made_from == made_from);
    Ok(Member {
        domain,
        made_from,
        places,
        spool,
        current,
    })
}

/// Prepares the domains of a group together, and reports on each of them with its number. The caller must hold the
/// lock.
fn prepare_group(
    options: &PrepareOptions,
    group: Group<'_>,
    tokenizer: &TokenizerFolder,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<(usize, DomainReport)>, CorpusError> {
    let prepared = group.members.iter().all(|member| member.current.is_none());
    let numbers = group.numbers.clone();
    let domains: Vec<&DomainSource> = group.domains.clone();
    let manifests = if prepared {
        tokenize(options, group, tokenizer, progress)?
    } else {
        let members = group.members.into_iter();
        members.filter_map(|member| member.current).collect()
    };
    let all = numbers.into_iter().zip(domains).zip(manifests);
    all.map(|((number, domain), manifest)| {
        Ok((number, report(options, domain, &manifest, prepared)?))
    })
    .collect()
}

/// Reports on a prepared domain. Writes its row index if it is missing; the caller must then hold the lock.
fn report(
    options: &PrepareOptions,
    domain: &DomainSource,
    manifest: &Manifest,
    prepared: bool,
) -> Result<DomainReport, CorpusError> {
    let folder = options.folder.join(&domain.name);
    let index = index_file(&folder, options.packing, options.sequence_length);
    let rows = if index.exists() {
        RowIndex::open(&index)?.rows
    } else {
        let tokens = Tokens::open(&folder, "", manifest)?;
        let length = options.sequence_length as u64;
        write_index(&index, options.packing, &tokens, manifest.documents, length)?
    };
    if rows == 0 {
        return Err(CorpusError::TooLittle {
            domain: domain.name.clone(),
            what: "has too little text for one sequence: add files, or lower corpus.validation_fraction",
        });
    }
    Ok(DomainReport {
        domain: domain.name.clone(),
        prepared,
        documents: manifest.documents,
        tokens: manifest.tokens,
        text_bytes: manifest.text_bytes,
        rows,
        validation_documents: manifest.validation_documents,
        spare: manifest.spare,
        duplicates: manifest.duplicates,
        short: manifest.short,
        quarantined: manifest.quarantined,
    })
}

/// Compares every prepared file with its manifest. Returns the names of the domains and how many bytes were read.
///
/// # Errors
/// If a domain is not prepared, or if a file cannot be read or does not match its checksum.
pub fn verify(options: &PrepareOptions) -> Result<Vec<(String, u64)>, CorpusError> {
    let of = |domain: &DomainSource| {
        let folder = options.folder.join(&domain.name);
        let manifest = read_manifest(options, domain)?;
        checksums::read(&folder, &manifest)?;
        let mut bytes = 0;
        for (name, expected) in &manifest.files {
            let path = folder.join(name);
            let (found, _) = checksums::of_file(&path)?;
            if found != *expected {
                return Err(CorpusError::lost(&path, "does not match its manifest.json"));
            }
            bytes += found.bytes;
        }
        for entry in fs::read_dir(&folder).map_err(CorpusError::io("read", &folder))? {
            let path = entry.map_err(CorpusError::io("read", &folder))?.path();
            if RowIndex::is_one(&path) {
                RowIndex::verify(&path)?;
                let metadata = fs::metadata(&path).map_err(CorpusError::io("read", &path))?;
                bytes += metadata.len();
            }
        }
        Ok((domain.name.clone(), bytes))
    };
    options.domains.iter().map(of).collect()
}
