//! An authenticator in software: what a security key does, so that a test can sign in
//! without a browser, and can do wrong on purpose.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use serde_json::{Value, json};

/// User present, user verified (WebAuthn §6.1).
const PRESENT_AND_VERIFIED: u8 = 0x05;

/// Attested credential data follows.
const WITH_CREDENTIAL: u8 = 0x40;

/// One resident passkey.
pub struct Passkey {
    key: EcdsaKeyPair,
    id: Vec<u8>,
    user_handle: Vec<u8>,
    counter: u32,
    /// The origin that the browser claims; change it to be a phishing page.
    pub origin: String,
    /// The relying party that the authenticator was asked for.
    pub rp_id: String,
}

impl Passkey {
    /// Answers `navigator.credentials.create()` with options as the server sent them.
    ///
    /// # Panics
    /// The options lack what WebAuthn demands of them.
    #[must_use]
    pub fn create(origin: &str, options: &Value) -> (Self, Value) {
        let options = options.get("publicKey").unwrap_or(options);
        let challenge = options["challenge"].as_str().expect("a challenge");
        let rp_id = options["rp"]["id"].as_str().expect("an rp id").to_owned();
        let user_handle = BASE64URL
            .decode(options["user"]["id"].as_str().expect("a user id"))
            .expect("a user id in base64url");
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key");
        let id = digest(&SHA256, key.public_key().as_ref()).as_ref().to_vec();
        let passkey = Self {
            key,
            id,
            user_handle,
            counter: 0,
            origin: origin.to_owned(),
            rp_id,
        };
        let credential = passkey.attestation(challenge);
        (passkey, credential)
    }

    fn attestation(&self, challenge: &str) -> Value {
        let mut data = self.authenticator_data(PRESENT_AND_VERIFIED | WITH_CREDENTIAL);
        data.extend([0; 16]); // AAGUID: none
        data.extend(
            u16::try_from(self.id.len())
                .expect("a short id")
                .to_be_bytes(),
        );
        data.extend(&self.id);
        data.extend(self.cose_key());
        // {"fmt": "none", "attStmt": {}, "authData": bytes}
        let mut object = vec![0xa3];
        object.extend(b"\x63fmt\x64none\x67attStmt\xa0\x68authData");
        object.push(0x59);
        object.extend(u16::try_from(data.len()).expect("short data").to_be_bytes());
        object.extend(data);
        json!({
            "id": BASE64URL.encode(&self.id),
            "rawId": BASE64URL.encode(&self.id),
            "type": "public-key",
            "extensions": {},
            "response": {
                "attestationObject": BASE64URL.encode(object),
                "clientDataJSON": BASE64URL.encode(self.client_data("webauthn.create", challenge)),
                "transports": ["internal"],
            },
        })
    }

    /// Answers `navigator.credentials.get()`.
    ///
    /// # Panics
    /// The options have no challenge.
    #[must_use]
    pub fn sign(&mut self, options: &Value) -> Value {
        let options = options.get("publicKey").unwrap_or(options);
        let challenge = options["challenge"].as_str().expect("a challenge");
        self.counter += 1;
        let data = self.authenticator_data(PRESENT_AND_VERIFIED);
        let client_data = self.client_data("webauthn.get", challenge);
        let mut signed = data.clone();
        signed.extend(digest(&SHA256, client_data.as_bytes()).as_ref());
        let signature = self
            .key
            .sign(&SystemRandom::new(), &signed)
            .expect("a signature");
        json!({
            "id": BASE64URL.encode(&self.id),
            "rawId": BASE64URL.encode(&self.id),
            "type": "public-key",
            "extensions": {},
            "response": {
                "authenticatorData": BASE64URL.encode(data),
                "clientDataJSON": BASE64URL.encode(client_data),
                "signature": BASE64URL.encode(signature.as_ref()),
                "userHandle": BASE64URL.encode(&self.user_handle),
            },
        })
    }

    fn authenticator_data(&self, flags: u8) -> Vec<u8> {
        let mut data = digest(&SHA256, self.rp_id.as_bytes()).as_ref().to_vec();
        data.push(flags);
        data.extend(self.counter.to_be_bytes());
        data
    }

    /// `{1: 2, 3: -7, -1: 1, -2: x, -3: y}` (RFC 9053 §7.1.1: EC2, ES256, P-256).
    fn cose_key(&self) -> Vec<u8> {
        // An uncompressed point: 4, x, y.
        let point = self.key.public_key().as_ref();
        let mut key = vec![0xa5, 0x01, 0x02, 0x03, 0x26, 0x20, 0x01, 0x21, 0x58, 0x20];
        key.extend(&point[1..33]);
        key.extend([0x22, 0x58, 0x20]);
        key.extend(&point[33..65]);
        key
    }

    fn client_data(&self, kind: &str, challenge: &str) -> String {
        json!({ "type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": false })
            .to_string()
    }
}
