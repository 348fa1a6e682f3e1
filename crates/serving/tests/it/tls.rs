//! HTTPS, with a CA that only the system's store knows.

use std::{env, fs, net::TcpListener, process::Command, sync::Arc, thread};

use ddk_serving::{ServingError, TeacherServer};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring};

use crate::{
    stub::{Answer, converse, standard},
    watch::{Seen, ask, options},
};

/// Tells the child process which server to ask.
const ADDRESS: &str = "DDK_TEST_TLS_ADDRESS";

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Starts a server whose certificate the authority signs. Returns its port.
fn serve(authority: &CertifiedIssuer<'_, KeyPair>) -> u16 {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer: Answer = Arc::new(standard(|_| None));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let (stream, answer) = (
                StreamOwned::new(connection, stream.unwrap()),
                answer.clone(),
            );
            thread::spawn(move || converse(stream, &answer));
        }
    });
    port
}

#[test]
fn the_systems_store_decides_whom_to_trust() {
    // The store is read once per process, so a child asks the server.
    if let Ok(address) = env::var(ADDRESS) {
        let mut server = TeacherServer::new(options(&address)).unwrap();
        match server.describe() {
            Err(ServingError::Unusable { reason, .. }) => panic!("unusable: {reason}"),
            described => assert_eq!(described.unwrap().model, "tiny"),
        }
        ask(
            &mut server,
            &[vec![1; 90], vec![2; 50], vec![3]],
            &Seen::default(),
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (authority(), authority());
    let port = serve(&ours);
    let child = |authority: &CertifiedIssuer<'_, KeyPair>, host: &str| {
        let file = folder.path().join("ca.pem");
        fs::write(&file, authority.pem()).unwrap();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "tls::the_systems_store_decides_whom_to_trust"])
            .env("SSL_CERT_FILE", &file)
            .env_remove("SSL_CERT_DIR")
            .env(ADDRESS, format!("https://{host}:{port}"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), text)
    };
    let (trusted, text) = child(&ours, "localhost");
    assert!(trusted, "{text}");
    // Signed by nobody the system knows, and for another name.
    for (authority, host) in [(&other, "localhost"), (&ours, "127.0.0.1")] {
        let (trusted, text) = child(authority, host);
        assert!(!trusted && text.contains("unusable: TLS fails"), "{text}");
    }
}
