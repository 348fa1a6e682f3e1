//! Data as people have it: a folder with files of every format, good and bad, from `init` to a trained step.

use std::{collections::BTreeMap, fs, io::Write, path::Path, sync::Arc};

use arrow_array::{RecordBatch, StringArray};
use arrow_ipc::{
    CompressionType,
    writer::{FileWriter, IpcWriteOptions, StreamWriter},
};
use ddk_corpus::TokenizerFolder;
use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use serde_json::{Value, json};

use crate::world::{World, stderr};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn batch(texts: &[String]) -> RecordBatch {
    let column = Arc::new(StringArray::from_iter_values(texts));
    RecordBatch::try_from_iter([("text", column as _)]).unwrap()
}

fn arrow_stream(texts: &[String]) -> Vec<u8> {
    let batch = batch(texts);
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

/// As pyarrow writes a Feather file by default.
fn feather(texts: &[String]) -> Vec<u8> {
    let batch = batch(texts);
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME));
    let schema = batch.schema();
    let mut writer =
        FileWriter::try_new_with_options(Vec::new(), &schema, options.unwrap()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn write_parquet(path: &Path, texts: &[String]) {
    let schema = "message m { required binary text (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let file = fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let values: Vec<ByteArray> = texts.iter().map(|text| text.as_str().into()).collect();
    let mut column = group.next_column().unwrap().unwrap();
    let of_text = column.typed::<ByteArrayType>();
    of_text.write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

/// An index and data of Megatron with 16-bit ids, one sequence per document.
fn megatron(documents: &[Vec<u32>]) -> [Vec<u8>; 2] {
    let count = documents.len() as u64;
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1_u64.to_le_bytes());
    index.push(8);
    index.extend(count.to_le_bytes());
    index.extend((count + 1).to_le_bytes());
    let mut data = Vec::new();
    let mut offsets = Vec::new();
    for document in documents {
        index.extend((document.len() as i32).to_le_bytes());
        offsets.extend((data.len() as i64).to_le_bytes());
        data.extend(document.iter().flat_map(|id| (*id as u16).to_le_bytes()));
    }
    index.extend(offsets);
    index.extend((0..=count).flat_map(u64::to_le_bytes));
    [index, data]
}

pub(crate) fn lines(records: impl IntoIterator<Item = Value>) -> Vec<u8> {
    let lines = records.into_iter().map(|record| format!("{record}\n"));
    lines.collect::<String>().into_bytes()
}

/// What a domain must become: its documents as texts, each with its prompt, and its bad records.
struct Expected {
    documents: Vec<(String, String)>,
    quarantined: u64,
}

/// A folder of data, and what it must become.
pub(crate) struct Data {
    pub(crate) world: World,
    texts: Vec<String>,
    expected: BTreeMap<&'static str, Expected>,
}

impl Data {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let read = |domain: &str| {
            let path = world.path().join(format!("sources/{domain}.jsonl"));
            let records = fs::read_to_string(path).unwrap();
            let text = |line: &str| {
                let record: Value = serde_json::from_str(line).unwrap();
                record["text"].as_str().unwrap().to_owned()
            };
            records.lines().map(text).collect::<Vec<String>>()
        };
        let texts = read("rivers");
        let data = Self {
            world,
            texts,
            expected: BTreeMap::new(),
        };
        fs::create_dir(data.path("")).unwrap();
        data
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.world.path().join("data").join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// The first texts.
    pub(crate) fn some(&self, count: usize) -> Vec<String> {
        self.texts[..count].to_vec()
    }

    fn expect(&mut self, domain: &'static str, texts: &[String], quarantined: u64) {
        let documents = texts.iter().map(|text| (String::new(), text.clone()));
        self.expect_prompted(domain, documents.collect(), quarantined);
    }

    fn expect_prompted(
        &mut self,
        domain: &'static str,
        documents: Vec<(String, String)>,
        quarantined: u64,
    ) {
        let expected = Expected {
            documents,
            quarantined,
        };
        assert!(self.expected.insert(domain, expected).is_none());
    }

    fn tokenizer(&self) -> TokenizerFolder {
        TokenizerFolder::open(&self.world.path().join("models/student"), None).unwrap()
    }

    fn write_good(&mut self) {
        let record = |text: &String| json!({ "text": text });
        let texts = self.some(20);
        let all: Vec<Value> = texts.iter().map(record).collect();

        self.write("array.json", json!(all).to_string().as_bytes());
        self.expect("array", &texts, 0);
        let marked = format!("\u{feff}{}", json!({ "version": 2, "rows": all }));
        self.write("within.json.gz", &gzip(marked.as_bytes()));
        self.expect("within", &texts, 0);
        let content = texts.iter().map(|text| json!({ "id": 7, "content": text }));
        self.write("lines.json", &lines(content));
        self.expect("lines", &texts, 0);
        self.write("UPPER.JSONL.GZ", &gzip(&lines(all.clone())));
        self.expect("UPPER", &texts, 0);
        self.write("nd.ndjson.zst", &zstd(&lines(all.clone())));
        self.expect("nd", &texts, 0);
        write_parquet(&self.path("rows.parquet"), &texts);
        self.expect("rows", &texts, 0);
        self.write("stream.arrow", &arrow_stream(&texts));
        self.expect("stream", &texts, 0);
        self.write("pyarrow.feather", &feather(&texts));
        self.expect("pyarrow", &texts, 0);
        let table = |delimiter: &str| {
            let row =
                |text: &String| format!("7{delimiter}\"{}\nend\"\n", text.replace('"', "\"\""));
            format!("id{delimiter}body\n") + &texts.iter().map(row).collect::<String>()
        };
        let with_break: Vec<String> = texts.iter().map(|text| format!("{text}\nend")).collect();
        self.write("table.csv", table(",").as_bytes());
        self.write("table.tsv", table("\t").as_bytes());
        self.expect("table_csv", &with_break, 0);
        self.expect("table_tsv", &with_break, 0);

        let alpaca = |(number, text): (usize, &String)| {
            let input = if number % 2 == 0 { "" } else { "the mint" };
            json!({ "instruction": format!("say {number}"), "input": input, "output": text })
        };
        let alpaca: Vec<Value> = texts.iter().enumerate().map(alpaca).collect();
        self.write(
            "alpaca.json",
            serde_json::to_string_pretty(&alpaca).unwrap().as_bytes(),
        );
        let prompted = |(number, text): (usize, &String)| {
            let input = if number % 2 == 0 { "" } else { "\n\nthe mint" };
            (format!("say {number}{input}\n"), text.clone())
        };
        let prompted = texts.iter().enumerate().map(prompted).collect();
        self.expect_prompted("alpaca", prompted, 0);
        let rows = texts.iter().enumerate();
        let rows = rows.map(|(number, text)| format!("which {number}?,\"{text}\"\n"));
        let table = "question,answer\n".to_owned() + &rows.collect::<String>();
        self.write("qa.csv.gz", &gzip(table.as_bytes()));
        let asked = |(number, text): (usize, &String)| (format!("which {number}?\n"), text.clone());
        self.expect_prompted("qa", texts.iter().enumerate().map(asked).collect(), 0);

        let tokenizer = self.tokenizer();
        let ids: Vec<Vec<u32>> = texts
            .iter()
            .map(|text| tokenizer.encode(text).unwrap())
            .collect();
        self.write(
            "ids.jsonl",
            &lines(ids.iter().map(|ids| json!({ "input_ids": ids }))),
        );
        self.expect("ids", &texts, 0);
        let [index, data] = megatron(&ids);
        self.write("indexed.idx", &index);
        self.write("indexed.bin", &data);
        self.expect("indexed", &texts, 0);

        for (number, text) in texts.iter().enumerate() {
            let name = format!("notes/{}/{number}", number % 2);
            match number % 3 {
                0 => self.write(&format!("{name}.md"), text.as_bytes()),
                1 => self.write(&format!("{name}.TXT.GZ"), &gzip(text.as_bytes())),
                _ => self.write(&format!("{name}.py.zst"), &zstd(text.as_bytes())),
            }
        }
        self.write("notes/README.md", b"a note like the others");
        let mut notes = texts.clone();
        notes.push("a note like the others".to_owned());
        self.expect("notes", &notes, 0);
        // As Hugging Face's `datasets` saves a data set.
        self.write(
            "saved/data-00000-of-00002.arrow",
            &arrow_stream(&texts[..10]),
        );
        self.write(
            "saved/data-00001-of-00002.arrow",
            &arrow_stream(&texts[10..]),
        );
        self.write("saved/dataset_info.json", b"{\"features\": {}}");
        self.write("saved/state.json", b"{\"_data_files\": []}");
        self.write("saved/README.md", b"describes the data set");
        self.expect("saved", &texts, 0);
    }

    fn write_bad(&mut self) {
        let texts = self.some(20);
        let record = |text: &String| json!({ "text": text });
        for (name, bytes) in [
            ("photo.png", &b"\x89PNG\r\n\x1a\n\0\0"[..]),
            ("paper.pdf", b"%PDF-1.7\n"),
            ("program", b"\x7fELF\x02\x01\x01\0"),
            ("archive.zip", b"PK\x03\x04"),
            ("picture.txt", b"\x89PNG\r\n\x1a\n\0\0"),
            ("empty.txt", b""),
            ("empty.jsonl", b"\n\n"),
            ("blank.md", b" \n\n"),
            ("latin1.txt", b"caf\xe9 au lait"),
            ("README.md", b"# About this data"),
            (".hidden.jsonl", b"{\"text\": \"hidden\"}\n"),
            ("sides.jsonl", b"{\"left\": \"a\", \"right\": \"b\"}\n"),
            ("no-json.json", b"this is no JSON\n"),
            ("records.xml", b"<a/>"),
        ] {
            self.write(name, bytes);
        }
        let whole = gzip(&lines(
            (0..4000).map(|number| json!({ "text": format!("{number} {number}") })),
        ));
        self.write("none.jsonl.gz", &whole[..20]);
        // These are damaged in part. The rest of each is used.
        let objects: Vec<String> = texts.iter().map(|text| record(text).to_string()).collect();
        let broken = format!(
            "[{}, {{\"text\": nope}}, {}]",
            objects[..10].join(","),
            objects[10..].join(",")
        );
        self.write("broken.json", broken.as_bytes());
        self.expect("broken", &texts, 1);
        let ragged = "text\n".to_owned() + &texts.join("\n") + "\none,two\n";
        self.write("ragged.csv", ragged.as_bytes());
        self.expect("ragged", &texts, 1);
        let mut mixed = lines(texts.iter().map(record));
        mixed.extend(b"not json\n{\"text\": \"caf\xe9\"}\n{\"txt\": \"a\"}\n{\"text\": \" \"}\n");
        self.write("mixed.jsonl", &mixed);
        self.expect("mixed", &texts, 4);
        let stream = arrow_stream(&texts);
        let mut two = stream[..stream.len() - 8].to_vec();
        two.extend(&stream[stream.len() / 2..stream.len() / 2 + 3]);
        self.write("cut.arrow", &two);
        self.expect("cut", &texts, 1);
    }

    pub(crate) fn init(&self, more: &[&str]) -> (bool, String) {
        let models = [
            "init",
            "--teacher",
            "models/teacher",
            "--student",
            "models/student",
        ];
        let output = self.world.run(&[&models[..], more].concat());
        (output.status.success(), stderr(&output))
    }
}

#[test]
fn a_folder_with_every_format_becomes_a_trained_step() {
    let mut data = Data::new();
    data.write_good();
    data.write_bad();
    let (succeeded, said) = data.init(&["--data", "data", "--out", "new.toml"]);
    assert!(succeeded, "{said}");
    for line in [
        "data/alpaca.json: JSON, 20 records: prompt \"{instruction}{?input}\\n\\n{input}{/}\\n\", text \"{output}\"",
        "data/array.json: JSON, 20 records: text in `text`",
        "data/within.json.gz: JSON, 20 records: text in `text`",
        "data/lines.json: JSON, 20 records: text in `content`",
        "data/UPPER.JSONL.GZ: JSON Lines, 20 records: text in `text`",
        "data/nd.ndjson.zst: JSON Lines, 20 records: text in `text`",
        "data/rows.parquet: Parquet, 20 records: text in `text`",
        "data/stream.arrow: Arrow, 20 records: text in `text`",
        "data/pyarrow.feather: Arrow, 20 records: text in `text`",
        "data/table.csv: CSV, 20 records: text in `body`",
        "data/table.tsv: TSV, 20 records: text in `body`",
        "data/qa.csv.gz: CSV, 20 records: prompt \"{question}\\n\", text \"{answer}\"",
        "data/ids.jsonl: JSON Lines, 20 records: token ids in `input_ids`",
        "data/indexed.idx: Megatron, 20 records: token ids",
        "data/notes: 21 files: text, one document each",
        "data/saved/README.md: skipped: text, one document: describes the data",
        "data/saved/dataset_info.json: skipped: describes a data set",
        "data/saved/state.json: skipped: describes a data set",
        "data/broken.json: JSON, 21 records, 1 of them unusable: text in `text`",
        "data/ragged.csv: CSV, 21 records, 1 of them unusable: text in `text`",
        "data/mixed.jsonl: JSON Lines, 24 records, 4 of them unusable: text in `text`",
        "data/cut.arrow: Arrow, 21 records, 1 of them unusable: text in `text`",
        "data/photo.png: skipped: binary: a PNG image",
        "data/paper.pdf: skipped: binary: a PDF file",
        "data/program: skipped: binary: an executable",
        "data/archive.zip: skipped: binary: a ZIP archive (or an office document)",
        "data/picture.txt: skipped: binary: a PNG image",
        "data/empty.txt: skipped: empty",
        "data/empty.jsonl: skipped: JSON Lines, 0 records: empty: it has no record",
        "data/blank.md: skipped: text, one document: empty",
        "data/latin1.txt: skipped: text, one document: not UTF-8 at byte 3",
        "data/README.md: skipped: text, one document: describes the data",
        "data/.hidden.jsonl: skipped: hidden",
        "data/sides.jsonl: skipped: JSON Lines, 1 record: no text field: the fields are `left`, `right`",
        "data/no-json.json: skipped: JSON, 1 record, 1 of them unusable: none of its records can be used",
        "data/records.xml: skipped: `.xml` is not a known extension of records, text or source code",
        "data/none.jsonl.gz: skipped: JSON Lines, 1 record, 1 of them unusable: none of its records can be \
         used; line 1: the file is cut",
        "set domains.ids.tokenizer in new.toml to the folder of the tokenizer",
        "set domains.indexed.tokenizer in new.toml",
    ] {
        assert!(
            said.lines().any(|said| said.starts_with(line)),
            "no {line:?} in:\n{said}"
        );
    }
    // `indexed.bin` is part of the pair, so it has no line of its own.
    assert!(!said.contains("indexed.bin"), "{said}");

    let path = data.world.path().join("new.toml");
    let config = fs::read_to_string(&path).unwrap();
    let parsed: toml::Table = toml::from_str(&config).unwrap();
    let names: Vec<&str> = parsed["domains"]
        .as_table()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let mut expected: Vec<&str> = data.expected.keys().copied().collect();
    let sorted = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(sorted(&names), sorted(&expected), "{said}");
    expected.clear();
    assert_eq!(
        parsed["objective"]["completion_only_loss"].as_bool(),
        Some(true)
    );
    assert_eq!(
        parsed["domains"]["saved"]["files"].as_array().unwrap()[0].as_str(),
        Some("data/saved/**/*.arrow"),
        "the README is no part of it"
    );
    assert!(config.contains("# CSV, 20 records: prompt"), "{config}");

    // Both domains of ids need their tokenizer: none is refused, then a wrong one, with its hash.
    let common = [
        "--set",
        "corpus.dir=new",
        "--set",
        "corpus.sequence_length=32",
        "--set",
        "corpus.max_bad_fraction=1",
        "--set",
        "corpus.validation_split=count",
        "--set",
        "corpus.validation_documents=4",
    ];
    let prepare = [&["prepare", "new.toml"][..], &common].concat();
    let refused = data.world.fail(2, &prepare);
    assert!(
        refused.contains("`domains.ids.tokenizer` is missing"),
        "{refused}"
    );
    ddk_corpus::train_tokenizer(
        data.texts.clone().into_iter(),
        290,
        &data.world.path().join("other"),
    )
    .unwrap();
    let placeholder = "# tokenizer = \"DIR\"";
    assert_eq!(config.matches(placeholder).count(), 2);
    fs::write(&path, config.replace(placeholder, "tokenizer = \"other\"#")).unwrap();
    let refused = data.world.fail(2, &prepare);
    assert!(
        refused.contains(
            "domain `ids`: its ids were made by another tokenizer: other (tokenizer.json "
        ) && refused.contains("but the corpus has models/student (tokenizer.json "),
        "{refused}"
    );
    fs::write(
        &path,
        config.replace(placeholder, "tokenizer = \"models/student\"#"),
    )
    .unwrap();
    data.world.succeed(&prepare);

    let tokenizer = data.tokenizer();
    for (domain, expected) in &data.expected {
        let manifest = fs::read(
            data.world
                .path()
                .join(format!("new/{domain}/manifest.json")),
        )
        .unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let sum = |keys: [&str; 2]| {
            keys.iter()
                .map(|key| manifest[key].as_u64().unwrap())
                .sum::<u64>()
        };
        let tokens = |(prompt, text): &(String, String)| {
            tokenizer.encode(prompt).unwrap().len() + tokenizer.encode_document(text).unwrap().len()
        };
        let found = (
            sum(["documents", "validation_documents"]),
            sum(["tokens", "validation_tokens"]),
            manifest["quarantined"].as_u64().unwrap(),
        );
        let wanted = (
            expected.documents.len() as u64,
            expected.documents.iter().map(tokens).sum::<usize>() as u64,
            expected.quarantined,
        );
        assert_eq!(found, wanted, "{domain}");
    }

    // The configuration as it is, but for sizes that suit a test.
    let step = [
        "--set",
        "run.max_steps=1",
        "--set",
        "run.name=formats",
        "--set",
        "training.global_batch_size=4",
        "--set",
        "training.micro_batch_size=2",
        "--set",
        "mixture.interval=1",
        "--set",
        "telemetry.enabled=false",
        "--set",
        "lr_scheduler.warmup_steps=0",
    ];
    data.world
        .succeed(&[&["train", "new.toml"][..], &common, &step].concat());
    let steps = fs::read_to_string(data.world.path().join("runs/formats/run.jsonl")).unwrap();
    let step: Value = serde_json::from_str(steps.lines().next().unwrap()).unwrap();
    assert!(step["ce_loss"].as_f64().unwrap() > 0.0, "{steps}");
}
