//! HMAC-SHA256 over header, parent header, metadata and content. Buffers are not covered; CURVE
//! covers them.
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The key of a connection file, prepared for use. With an empty key messages are not signed.
#[derive(Clone)]
pub(crate) struct Key(Option<Hmac<Sha256>>);

impl Key {
    pub(crate) fn new(key: &[u8]) -> Key {
        if key.is_empty() {
            return Key(None);
        }
        // HMAC accepts keys of any length; the error type exists for other algorithms.
        Key(Hmac::<Sha256>::new_from_slice(key).ok())
    }
    /// The signature as lower-case hex; empty without a key.
    pub(crate) fn sign(&self, parts: [&[u8]; 4]) -> String {
        let Some(mac) = &self.0 else {
            return String::new();
        };
        let mut mac = mac.clone();
        parts.iter().for_each(|part| mac.update(part));
        hex::encode(mac.finalize().into_bytes())
    }
    /// Compares in constant time.
    pub(crate) fn verify(&self, parts: [&[u8]; 4], signature: &[u8]) -> bool {
        let Some(mac) = &self.0 else {
            return true;
        };
        let mut raw = [0u8; 32];
        if hex::decode_to_slice(signature, &mut raw).is_err() {
            return false;
        }
        let mut mac = mac.clone();
        parts.iter().for_each(|part| mac.update(part));
        mac.verify_slice(&raw).is_ok()
    }
    pub(crate) fn is_signing(&self) -> bool {
        self.0.is_some()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_jupyter_client() {
        // python: hmac.new(b"key", b"{}{}{}{}", "sha256").hexdigest()
        let key = Key::new(b"key");
        let parts: [&[u8]; 4] = [b"{}", b"{}", b"{}", b"{}"];
        let signature = key.sign(parts);
        assert_eq!(signature, "ca767b02c5bc061ed184a9a029e7f93a7f2f7ed4e8fe74120fc1212f0b008fa3");
        assert!(key.verify(parts, signature.as_bytes()));
        assert!(!key.verify([b"{}", b"{}", b"{}", b"[]"], signature.as_bytes()));
        assert!(!key.verify(parts, b"zz"));
        assert!(!key.verify(parts, b""));
        assert!(Key::new(b"").verify(parts, b""));
    }
}
