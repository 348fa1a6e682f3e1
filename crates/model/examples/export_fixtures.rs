//! Loads each test model that transformers created and exports it again, for `tests/reference/exported.py` to
//! compare.
//!
//! usage: cargo run -p ddk-model --example export_fixtures -- FOLDER

use std::{error::Error, fs, path::Path};

use ddk_model::{Export, Model, Placement};
use tch::{Device, Kind};

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args()
        .nth(1)
        .ok_or("usage: export_fixtures FOLDER")?;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for entry in fs::read_dir(fixtures)? {
        let folder = entry?.path();
        let name = folder.file_name().ok_or("a fixture without a name")?;
        let model = Model::load(&folder, &Placement::on(Device::Cpu, Kind::Float))?;
        let mut export = Export::new(&folder);
        // Use small shards, so that the index is read too.
        export.shard_bytes = 20_000;
        model.save(&Path::new(&target).join(name), &export)?;
    }
    Ok(())
}
