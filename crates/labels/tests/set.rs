//! The contract of a set within one process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::HashSet,
    fs::{self, File},
    sync::Barrier,
    thread,
    time::SystemTime,
};

use common::{Place, id, label, provenance, random, scale};
use ddk_labels::{LabelError, LabelSet, Put, Report, sets};
use serde_json::json;

/// Two users of a set: what each finds is what is flushed by anyone, and what it has put itself.
#[test]
fn two_users_of_a_set_agree_with_a_model_of_it() {
    for trial in 0..20 * scale() {
        let place = Place::new();
        let mut users = [place.open(None), place.open(None)];
        let (mut flushed, mut pending) = (HashSet::new(), [HashSet::new(), HashSet::new()]);
        for action in 0..300 {
            let number = random(trial * 1000 + action);
            let (user, key) = ((number % 2) as usize, number / 64 % 40);
            let visible = flushed.contains(&key) || pending[user].contains(&key);
            match number / 2 % 16 {
                0..7 => {
                    let expected = if visible {
                        Put::AlreadyThere
                    } else {
                        Put::Stored
                    };
                    assert_eq!(users[user].put(&id(key), &label(key)).unwrap(), expected);
                    if !visible {
                        pending[user].insert(key);
                    }
                }
                7..12 => {
                    let expected = visible.then(|| label(key));
                    assert!(
                        users[user].get(&id(key)).unwrap() == expected,
                        "trial {trial}, action {action}"
                    );
                }
                12..14 => assert_eq!(users[user].contains(&id(key)), visible),
                14 => {
                    users[user].flush().unwrap();
                    flushed.extend(pending[user].drain());
                }
                _ => {
                    // The new user opens before the old one closes.
                    users[user] = place.open(None);
                    flushed.extend(pending[user].drain());
                }
            }
        }
        drop(users);
        flushed.extend(pending.into_iter().flatten());
        let set = place.find();
        for key in 0..40 {
            let expected = flushed.contains(&key).then(|| label(key));
            assert!(set.get(&id(key)).unwrap() == expected);
        }
        let stats = set.stats();
        assert_eq!(stats.labels, flushed.len() as u64);
        assert_eq!(
            (stats.hits, stats.misses),
            (stats.labels, 40 - stats.labels)
        );
        assert_eq!(set.take_reports(), []);
    }
}

#[test]
fn threads_share_a_set() {
    let place = Place::new();
    let set = place.open(None);
    let together = Barrier::new(3);
    // A thread that panics would leave the others waiting, so the results are checked later.
    let fill = || {
        let put = |number: u64| {
            together.wait();
            (set.put(&id(number), &label(number)), set.get(&id(number)))
        };
        (0..600).map(put).collect::<Vec<_>>()
    };
    let results: Vec<_> = thread::scope(|scope| {
        let threads = [(); 3].map(|()| scope.spawn(fill));
        threads.map(|thread| thread.join().unwrap()).into()
    });
    let mut stored = 0;
    for (number, (put, get)) in results.into_iter().flat_map(|results| (0..).zip(results)) {
        stored += u32::from(put.unwrap() == Put::Stored);
        assert!(get.unwrap().unwrap() == label(number));
    }
    assert_eq!(stored, 600);
    assert_eq!(set.stats().stored, 600);
    set.flush().unwrap();
    let elsewhere = place.find();
    assert!((0..600).all(|number| elsewhere.get(&id(number)).unwrap() == Some(label(number))));
}

#[test]
fn a_segment_that_appears_in_an_old_folder_is_found() {
    let place = Place::new();
    let set = place.open(None);
    let folder = File::open(set.folder()).unwrap();
    folder.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let reader = place.find();
    assert_eq!(reader.get(&id(0)).unwrap(), None);
    for number in 0..3 {
        set.put(&id(number), &label(number)).unwrap();
        set.flush().unwrap();
        assert_eq!(reader.get(&id(number)).unwrap(), Some(label(number)));
    }
}

#[test]
fn the_limit_counts_all_sets_and_ends_writing() {
    let place = Place::new();
    let other = LabelSet::open(&place.cache, "other", &provenance("b"), None).unwrap();
    other.put(&id(0), &[1; 50_000]).unwrap();
    drop(other);
    let limit = 60_000;
    let set = place.open(Some(limit));
    let puts = [0, 1, 2, 3].map(|number| set.put(&id(number), &[2; 4000]).unwrap());
    assert_eq!(puts, [Put::Stored, Put::Stored, Put::Full, Put::Full]);
    assert_eq!(set.put(&id(0), &[2; 4000]).unwrap(), Put::AlreadyThere);
    assert_eq!(set.put(&id(4), b"small").unwrap(), Put::Full);
    assert_eq!(set.get(&id(1)).unwrap().unwrap(), [2; 4000]);
    assert_eq!(set.take_reports(), [Report::Full { limit }]);
    assert_eq!(set.take_reports(), []);
    // At the limit, the labels so far are flushed.
    assert!(place.find().contains(&id(1)));
    drop(set);
    let bytes: u64 = sets(&place.cache)
        .unwrap()
        .iter()
        .map(|set| set.bytes)
        .sum();
    assert!(bytes <= limit, "{bytes}");
    let set = place.open(Some(1));
    assert_eq!(set.put(&id(9), b"").unwrap(), Put::Full);
    assert_eq!(place.open(None).put(&id(9), b"").unwrap(), Put::Stored);
    assert_eq!(set.get(&id(9)).unwrap().unwrap(), b"");
}

#[test]
fn sets_are_listed_and_removed() {
    let place = Place::new();
    assert!(sets(&place.cache).unwrap().is_empty());
    assert!(
        LabelSet::find(&place.cache, "set", &provenance("a"))
            .unwrap()
            .is_none()
    );
    let set = place.open(None);
    set.put(&id(0), &label(0)).unwrap();
    set.keep_record("perplexities", &json!(1)).unwrap();
    set.flush().unwrap();
    drop(LabelSet::open(&place.cache, "b", &provenance("b"), None).unwrap());
    fs::create_dir(place.cache.join("something else")).unwrap();
    let listed = sets(&place.cache).unwrap();
    let listed: Vec<_> = listed
        .iter()
        .map(|set| (set.provenance.clone(), set.labels))
        .collect();
    assert_eq!(listed, [(provenance("b"), 0), (provenance("a"), 1)]);
    assert_eq!(sets(&place.cache).unwrap()[1].bytes, set.stats().bytes);

    let name = provenance("a").name("set");
    let remove = |name: &str| ddk_labels::remove(&place.cache, name);
    assert!(matches!(remove(&name), Err(LabelError::InUse { .. })));
    drop(set);
    assert!(matches!(
        remove("something else"),
        Err(LabelError::NoSet { .. })
    ));
    assert!(matches!(
        remove(&format!("../cache/{name}")),
        Err(LabelError::NoSet { .. })
    ));
    remove(&name).unwrap();
    assert!(matches!(remove(&name), Err(LabelError::NoSet { .. })));
    assert_eq!(sets(&place.cache).unwrap().len(), 1);
    assert!(!place.open(None).contains(&id(0)));
}

#[test]
fn a_folder_whose_provenance_was_edited_is_refused() {
    let place = Place::new();
    let path = place.open(None).folder().join("provenance.json");
    let edited = fs::read_to_string(&path).unwrap().replace("bf16", "fp32");
    fs::write(&path, edited).unwrap();
    for result in [
        LabelSet::open(&place.cache, "set", &provenance("a"), None).map(Some),
        LabelSet::find(&place.cache, "set", &provenance("a")),
    ] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("(`dtype` is `fp32`, not `bf16`)"), "{error}");
    }
    fs::write(&path, "[]").unwrap();
    assert!(matches!(
        LabelSet::find(&place.cache, "set", &provenance("a")),
        Err(LabelError::BadProvenance { .. })
    ));
}

#[test]
fn records_are_kept_by_key() {
    let place = Place::new();
    let set = place.open(None);
    assert_eq!(set.record("perplexities").unwrap(), None);
    for value in [
        json!({ "web": 7.300000000000001 }),
        json!([1, null, "text"]),
    ] {
        set.keep_record("perplexities", &value).unwrap();
        assert_eq!(place.find().record("perplexities").unwrap(), Some(value));
    }
    for key in ["", "../x", "a/b", ".hidden", "é"] {
        assert!(matches!(set.record(key), Err(LabelError::BadKey { .. })));
        assert!(matches!(
            set.keep_record(key, &json!(1)),
            Err(LabelError::BadKey { .. })
        ));
    }
    let reader = place.find();
    assert!(matches!(
        reader.put(&id(0), b""),
        Err(LabelError::ReadOnly { .. })
    ));
    assert!(matches!(
        reader.keep_record("a", &json!(1)),
        Err(LabelError::ReadOnly { .. })
    ));
    reader.flush().unwrap();
}

#[test]
fn users_who_keep_the_same_record_at_once_leave_a_whole_one() {
    let place = Place::new();
    let users = [place.open(None), place.open(None)];
    thread::scope(|scope| {
        for (number, set) in users.iter().enumerate() {
            scope.spawn(move || {
                for _ in 0..50 {
                    set.keep_record("perplexities", &json!(vec![number; 100]))
                        .unwrap();
                    assert!(set.record("perplexities").unwrap().is_some());
                }
            });
        }
    });
    assert!(users.iter().all(|set| set.take_reports().is_empty()));
}
