//! Signed logins of users: `{tokenId, exp, kid, sig}`, or a JWT. Each key has one algorithm, whatever a login says.

use std::collections::HashMap;
use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use sha2::Sha256;

use super::Denied;
use crate::notification::Token;

/// The longest JWT that is looked at, in bytes.
const MAX_JWT_BYTES: usize = 8 * 1024;

/// How far the clock of whoever made a JWT may be ahead: for `nbf`, never for `exp`.
const CLOCK_SKEW: TimeDelta = TimeDelta::seconds(60);

/// RSA keys below 2,048 bits can be broken.
const MIN_RSA_BYTES: usize = 256;

/// Shorter secrets could be guessed.
const MIN_SECRET_BYTES: usize = 16;

/// What a user shows at a login.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A signature of token, audience and time.
    Signed {
        /// When it is no longer good, in Unix seconds.
        exp: i64,
        /// Which key it was signed with.
        kid: String,
        /// Lower-case hex HMAC-SHA256.
        sig: String,
    },
    /// A JSON Web Token in its compact form.
    Jwt(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signed { exp, kid, .. } => write!(f, "Signed {{ exp: {exp}, kid: {kid:?}, .. }}"),
            Self::Jwt(_) => f.write_str("Jwt(..)"),
        }
    }
}

impl Credential {
    /// As it stands in `Authorization: Tidings kid=..., exp=..., sig=...`.
    pub(super) fn of_header(text: &str) -> Option<Self> {
        let (mut exp, mut kid, mut sig) = (None, None, None);
        for part in text.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            let value = value.trim_matches('"');
            match name {
                "exp" => exp = value.parse().ok(),
                "kid" => kid = Some(value.to_owned()),
                "sig" => sig = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(Self::Signed { exp: exp?, kid: kid?, sig: sig? })
    }
}

/// What logins are signed with, by the id of the key.
#[derive(Default, Clone)]
pub struct LoginKeys {
    keys: HashMap<String, LoginKey>,
    needed: bool,
}

impl fmt::Debug for LoginKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

#[derive(Clone)]
enum LoginKey {
    /// For `sig`, and for JWTs with HS256.
    Secret(Vec<u8>),
    /// For JWTs with this algorithm.
    Public(Algorithm, DecodingKey),
}

/// Why a set of keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not JSON, or not a key set.
    #[error("it is no JSON Web Key Set: {0}")]
    NoKeySet(String),
    /// One of its keys cannot be used.
    #[error("keys[{at}]: {problem}")]
    Key {
        /// Which, counted from 0.
        at: usize,
        /// Why.
        problem: String,
    },
    /// Two keys have the same id.
    #[error("the key id {0:?} is there twice")]
    Twice(String),
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: i64,
    nbf: Option<i64>,
}

impl LoginKeys {
    /// Adds secrets by their ids.
    ///
    /// # Errors
    /// [`KeySetError::Twice`].
    pub fn with_secrets(mut self, secrets: &[(String, String)]) -> Result<Self, KeySetError> {
        for (kid, secret) in secrets {
            self.add(kid, LoginKey::Secret(secret.clone().into_bytes()))?;
        }
        Ok(self)
    }

    /// Adds the keys of a JSON Web Key Set (RFC 7517). Each needs a `kid` and an `alg`: HS256, EdDSA, ES256 or RS256.
    ///
    /// # Errors
    /// Says which key is wrong, and shows nothing of it.
    pub fn with_key_set(mut self, json: &str) -> Result<Self, KeySetError> {
        // The message of the parser could show a part of a key.
        let wrong = |error: serde_json::Error| format!("line {}, column {}", error.line(), error.column());
        let set: JwkSet = serde_json::from_str(json).map_err(|error| KeySetError::NoKeySet(wrong(error)))?;
        for (at, key) in set.keys.iter().enumerate() {
            let (kid, key) = login_key(key).map_err(|problem| KeySetError::Key { at, problem })?;
            self.add(&kid, key)?;
        }
        Ok(self)
    }

    fn add(&mut self, kid: &str, key: LoginKey) -> Result<(), KeySetError> {
        self.needed = true;
        match self.keys.insert(kid.to_owned(), key) {
            Some(_) => Err(KeySetError::Twice(kid.to_owned())),
            None => Ok(()),
        }
    }

    /// Once logins need a signature they do for good.
    pub(super) fn replacing(mut self, before: &Self) -> Self {
        self.needed |= before.needed;
        self
    }

    pub(super) fn needed(&self) -> bool {
        self.needed
    }

    pub(super) fn verify(
        &self,
        credential: &Credential,
        token: &Token,
        audience: &str,
        now: DateTime<Utc>,
    ) -> Result<DateTime<Utc>, Denied> {
        let exp = match credential {
            Credential::Signed { exp, kid, sig } => {
                let Some(LoginKey::Secret(secret)) = self.keys.get(kid) else { return Err(Denied) };
                let sig = unhex(sig).ok_or(Denied)?;
                mac(secret, token.as_str(), *exp, audience).verify_slice(&sig).map_err(|_| Denied)?;
                *exp
            }
            Credential::Jwt(jwt) => self.verify_jwt(jwt, token, audience, now)?,
        };
        let exp = DateTime::from_timestamp(exp, 0).ok_or(Denied)?;
        if exp > now { Ok(exp) } else { Err(Denied) }
    }

    fn verify_jwt(&self, jwt: &str, token: &Token, audience: &str, now: DateTime<Utc>) -> Result<i64, Denied> {
        if jwt.len() > MAX_JWT_BYTES {
            return Err(Denied);
        }
        let kid = decode_header(jwt).map_err(|_| Denied)?.kid.ok_or(Denied)?;
        let (algorithm, key) = match self.keys.get(&kid).ok_or(Denied)? {
            LoginKey::Secret(secret) => (Algorithm::HS256, &DecodingKey::from_secret(secret)),
            LoginKey::Public(algorithm, key) => (*algorithm, key),
        };
        let mut wanted = Validation::new(algorithm);
        wanted.set_audience(&[audience]);
        wanted.set_required_spec_claims(&["exp", "aud", "sub"]);
        // The times are compared here, with one clock for all.
        wanted.validate_exp = false;
        let claims = decode::<Claims>(jwt, key, &wanted).map_err(|_| Denied)?.claims;
        let too_early = claims.nbf.is_some_and(|nbf| nbf > (now + CLOCK_SKEW).timestamp());
        if claims.sub == token.as_str() && !too_early { Ok(claims.exp) } else { Err(Denied) }
    }

    pub(super) fn sign(
        &self,
        token: &str,
        exp: i64,
        kid: Option<&str>,
        audience: &str,
    ) -> Option<(i64, String, String)> {
        let secret = |kid: &str| match self.keys.get(kid) {
            Some(LoginKey::Secret(secret)) => Some(secret),
            _ => None,
        };
        let first = || self.keys.keys().map(String::as_str).filter(|kid| secret(kid).is_some()).min();
        let kid = kid.or_else(first)?;
        let mac = mac(secret(kid)?, token, exp, audience);
        let sig = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Some((exp, kid.to_owned(), sig))
    }
}

fn login_key(key: &Jwk) -> Result<(String, LoginKey), String> {
    let kid = key.common.key_id.clone().filter(|kid| !kid.is_empty()).ok_or("it has no kid")?;
    let alg = key.common.key_algorithm.ok_or("it has no alg: HS256, EdDSA, ES256 or RS256")?;
    let decoding = || DecodingKey::from_jwk(key).map_err(|_| "its parameters cannot be read".to_owned());
    let wrong = || format!("its alg {alg} is none of HS256, EdDSA, ES256 and RS256, or does not fit its kty");
    let found = match (alg, &key.algorithm) {
        (KeyAlgorithm::HS256, AlgorithmParameters::OctetKey(_)) => {
            let key = decoding()?;
            let secret = key.try_get_as_bytes().map_err(|_| wrong())?;
            if secret.len() < MIN_SECRET_BYTES {
                return Err(format!("its secret must have {MIN_SECRET_BYTES} bytes or more"));
            }
            LoginKey::Secret(secret.to_vec())
        }
        (KeyAlgorithm::EdDSA, AlgorithmParameters::OctetKeyPair(_)) => LoginKey::Public(Algorithm::EdDSA, decoding()?),
        (KeyAlgorithm::ES256, AlgorithmParameters::EllipticCurve(_)) => LoginKey::Public(Algorithm::ES256, decoding()?),
        (KeyAlgorithm::RS256, AlgorithmParameters::RSA(rsa)) => {
            // Four characters of base64 are three bytes.
            if rsa.n.len() / 4 * 3 < MIN_RSA_BYTES - 2 {
                return Err("its RSA modulus must have 2048 bits or more".to_owned());
            }
            LoginKey::Public(Algorithm::RS256, decoding()?)
        }
        _ => return Err(wrong()),
    };
    Ok((kid, found))
}

fn mac(secret: &[u8], token: &str, exp: i64, audience: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
    mac.update(format!("tidings.login.v1\n{audience}\n{token}\n{exp}").as_bytes());
    mac
}

/// Lower-case digits alone: one signature is written in one way.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}
