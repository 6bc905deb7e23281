//! Signed logins of users: `{tokenId, exp, kid, sig}`, or a JWT. Each key has one algorithm, whatever a login says.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sha2::Sha256;

use super::{Denied, Rules};
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
        /// HMAC-SHA256 in hex.
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

/// What logins are signed with.
#[derive(Default, Clone)]
pub struct LoginKeys {
    keys: Vec<LoginKey>,
    needed: bool,
    skipped: Vec<String>,
}

impl fmt::Debug for LoginKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.iter().map(|key| &key.kid)).finish()
    }
}

#[derive(Clone)]
struct LoginKey {
    /// Without one it is for JWTs that name none.
    kid: Option<String>,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    /// For `sig`, and for JWTs with HS256.
    Secret(Vec<u8>),
    /// For JWTs with this algorithm.
    Public(Algorithm, DecodingKey),
}

impl LoginKey {
    fn algorithm(&self) -> Algorithm {
        match self.kind {
            Kind::Secret(_) => Algorithm::HS256,
            Kind::Public(algorithm, _) => algorithm,
        }
    }
}

/// Why a set of keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// Not JSON, or not a key set.
    #[error("it is not a JSON Web Key Set: {0}")]
    NoKeySet(String),
    /// It has keys, but none that a login could be signed with.
    #[error("the key set has no usable key: {}", if .0.is_empty() { "it is empty" } else { .0 })]
    NoUsableKey(String),
    /// Two keys have the same id.
    #[error("the key id {0:?} occurs twice")]
    Twice(String),
}

#[derive(Deserialize)]
struct Claims {
    /// A string or an integer, as tokens are everywhere.
    sub: Box<RawValue>,
    /// Seconds, which may have a fraction (RFC 7519 section 2), as may those of `nbf`.
    exp: f64,
    nbf: Option<f64>,
}

impl LoginKeys {
    /// Adds secrets by their ids.
    ///
    /// # Errors
    /// [`KeySetError::Twice`].
    pub fn with_secrets(mut self, secrets: &[(String, String)]) -> Result<Self, KeySetError> {
        for (kid, secret) in secrets {
            self.add(LoginKey { kid: Some(kid.clone()), kind: Kind::Secret(secret.clone().into_bytes()) })?;
        }
        Ok(self)
    }

    /// Adds the keys of a JSON Web Key Set (RFC 7517) that are for HS256, EdDSA, ES256 or RS256. Others are skipped, as
    /// section 5 wants it: a provider may publish keys for encryption, or of a kind that is not known yet.
    ///
    /// # Errors
    /// It is no key set, or none of its keys can be used. Shows nothing of a key.
    pub fn with_key_set(mut self, json: &str) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct KeySet<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        // The message of the parser could show a part of a key.
        let wrong = |error: serde_json::Error| format!("line {}, column {}", error.line(), error.column());
        let set: KeySet<'_> = serde_json::from_str(json).map_err(|error| KeySetError::NoKeySet(wrong(error)))?;
        let before = self.keys.len();
        for (at, key) in set.keys.iter().enumerate() {
            match login_key(key.get()) {
                Ok(key) => self.add(key)?,
                Err(problem) => self.skipped.push(format!("keys[{at}]: {problem}")),
            }
        }
        match self.keys.len() > before {
            true => Ok(self),
            false => Err(KeySetError::NoUsableKey(self.skipped.join("; "))),
        }
    }

    /// Which keys of a key set were skipped, and why.
    #[must_use]
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    fn add(&mut self, key: LoginKey) -> Result<(), KeySetError> {
        self.needed = true;
        if let Some(kid) = &key.kid
            && self.keys.iter().any(|other| other.kid == key.kid)
        {
            return Err(KeySetError::Twice(kid.clone()));
        }
        self.keys.push(key);
        Ok(())
    }

    /// Once logins need a signature they do for good.
    pub(super) fn replacing(mut self, before: &Self) -> Self {
        self.needed |= before.needed;
        self
    }

    pub(super) fn needed(&self) -> bool {
        self.needed
    }

    /// Until when a credential is good.
    pub(super) fn verify(
        &self,
        credential: &Credential,
        token: &Token,
        rules: &Rules,
        now: DateTime<Utc>,
    ) -> Result<DateTime<Utc>, Denied> {
        let exp = match credential {
            Credential::Signed { exp, kid, sig } => {
                let secret = self.secret(kid).ok_or(Denied::UnknownKey)?;
                let sig = hex::decode(sig).map_err(|_| Denied::Signature)?;
                let mac = mac(secret, token.as_str(), *exp, &rules.audience);
                mac.verify_slice(&sig).map_err(|_| Denied::Signature)?;
                DateTime::from_timestamp(*exp, 0).ok_or(Denied::TooFarAhead)?
            }
            Credential::Jwt(jwt) => self.verify_jwt(jwt, token, &rules.audience, now)?,
        };
        match rules.max_login {
            _ if exp <= now => Err(Denied::Expired),
            Some(max) if exp - now > max => Err(Denied::TooFarAhead),
            _ => Ok(exp),
        }
    }

    fn verify_jwt(
        &self,
        jwt: &str,
        token: &Token,
        audience: &str,
        now: DateTime<Utc>,
    ) -> Result<DateTime<Utc>, Denied> {
        if jwt.len() > MAX_JWT_BYTES {
            return Err(Denied::Malformed);
        }
        let header = decode_header(jwt).map_err(|_| Denied::Malformed)?;
        // What stands in it must be understood (RFC 7515 section 4.1.11), and nothing of that kind is.
        if header.crit.is_some() {
            return Err(Denied::Critical);
        }
        let fits = |key: &&LoginKey| key.algorithm() == header.alg && (header.kid.is_none() || key.kid == header.kid);
        let mut fitting = self.keys.iter().filter(fits);
        let key = fitting.next().ok_or(Denied::UnknownKey)?;
        if fitting.next().is_some() {
            return Err(Denied::SeveralKeys);
        }
        let mut wanted = Validation::new(key.algorithm());
        wanted.set_audience(&[audience]);
        wanted.set_required_spec_claims(&["aud"]);
        // The times are compared here, with one clock for all.
        wanted.validate_exp = false;
        let decoded = match &key.kind {
            Kind::Secret(secret) => decode::<Claims>(jwt, &DecodingKey::from_secret(secret), &wanted),
            Kind::Public(_, key) => decode::<Claims>(jwt, key, &wanted),
        };
        let claims = decoded.map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => Denied::Signature,
            ErrorKind::InvalidAudience | ErrorKind::MissingRequiredClaim(_) => Denied::Audience,
            _ => Denied::Malformed,
        })?;
        let Claims { sub, exp, nbf } = claims.claims;
        let sub = Token::text_of_json(&sub).ok().flatten().ok_or(Denied::Malformed)?;
        if sub != token.as_str() {
            return Err(Denied::Subject);
        }
        let latest = (now + CLOCK_SKEW).timestamp_millis() as f64 / 1000.0;
        if nbf.is_some_and(|nbf| nbf > latest) {
            return Err(Denied::TooEarly);
        }
        let since_epoch = Duration::try_from_secs_f64(exp.max(0.0)).ok().and_then(|exp| TimeDelta::from_std(exp).ok());
        since_epoch.and_then(|exp| DateTime::UNIX_EPOCH.checked_add_signed(exp)).ok_or(Denied::TooFarAhead)
    }

    pub(super) fn sign(
        &self,
        token: &str,
        exp: i64,
        kid: Option<&str>,
        audience: &str,
    ) -> Option<(i64, String, String)> {
        let first =
            || self.keys.iter().filter_map(|key| key.kid.as_deref()).filter(|kid| self.secret(kid).is_some()).min();
        let kid = kid.or_else(first)?;
        let mac = mac(self.secret(kid)?, token, exp, audience);
        Some((exp, kid.to_owned(), hex::encode(mac.finalize().into_bytes())))
    }

    fn secret(&self, kid: &str) -> Option<&[u8]> {
        self.keys.iter().find_map(|key| match &key.kind {
            Kind::Secret(secret) if key.kid.as_deref() == Some(kid) => Some(&**secret),
            _ => None,
        })
    }
}

/// Reads a key of a set, or says why it is skipped.
fn login_key(json: &str) -> Result<LoginKey, String> {
    /// Parameters of the key itself. What else an entry holds, certificates for instance, is not looked at.
    const PARAMETERS: [&str; 7] = ["kty", "crv", "k", "n", "e", "x", "y"];
    let mut entry: Map<String, Value> = serde_json::from_str(json).map_err(|_| "it is not a JSON object".to_owned())?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let kid = text("kid").filter(|kid| !kid.is_empty()).map(str::to_owned);
    let named = kid.as_ref().map_or_else(|| "it has no kid, and".to_owned(), |kid| format!("kid {kid:?}:"));
    let skipped = |why: String| format!("{named} {why}");
    if let Some(purpose) = text("use").filter(|purpose| *purpose != "sig") {
        return Err(skipped(format!("its use is {purpose:?}, not \"sig\"")));
    }
    let signs = |operations: &Vec<Value>| operations.iter().any(|what| what == "verify" || what == "sign");
    if entry.get("key_ops").and_then(Value::as_array).is_some_and(|operations| !signs(operations)) {
        return Err(skipped("its key_ops have neither \"verify\" nor \"sign\"".to_owned()));
    }
    // Each kind of key has one algorithm here, so an entry need not name it.
    let (algorithm, name) = match (text("kty"), text("crv")) {
        (Some("oct"), _) => (Algorithm::HS256, "HS256"),
        (Some("RSA"), _) => (Algorithm::RS256, "RS256"),
        (Some("EC"), Some("P-256")) => (Algorithm::ES256, "ES256"),
        (Some("OKP"), Some("Ed25519")) => (Algorithm::EdDSA, "EdDSA"),
        (kty, crv) => {
            let kty = kty.unwrap_or_default();
            let crv = crv.map(|crv| format!(" with the crv {crv:?}")).unwrap_or_default();
            return Err(skipped(format!(
                "its kty {kty:?}{crv} is none of oct, RSA, EC with P-256 and OKP with Ed25519"
            )));
        }
    };
    if let Some(alg) = entry.get("alg").filter(|alg| *alg != name) {
        return Err(skipped(format!("its alg is {alg}; of its kty only {name} is taken")));
    }
    // Four characters of base64 are three bytes.
    if algorithm == Algorithm::RS256 && text("n").is_some_and(|n| n.len() / 4 * 3 < MIN_RSA_BYTES - 2) {
        return Err(skipped("its RSA modulus must have 2048 bits or more".to_owned()));
    }
    entry.retain(|name, _| PARAMETERS.contains(&name.as_str()));
    let unreadable = || skipped("its parameters cannot be read".to_owned());
    let key: Jwk = serde_json::from_value(Value::Object(entry)).map_err(|_| unreadable())?;
    let key = DecodingKey::from_jwk(&key).map_err(|_| unreadable())?;
    let kind = match algorithm {
        Algorithm::HS256 => {
            let secret = key.try_get_as_bytes().map_err(|_| unreadable())?;
            if secret.len() < MIN_SECRET_BYTES {
                return Err(skipped(format!("its secret must have {MIN_SECRET_BYTES} bytes or more")));
            }
            Kind::Secret(secret.to_vec())
        }
        algorithm => Kind::Public(algorithm, key),
    };
    Ok(LoginKey { kid, kind })
}

fn mac(secret: &[u8], token: &str, exp: i64, audience: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
    mac.update(format!("tidings.login.v1\n{audience}\n{token}\n{exp}").as_bytes());
    mac
}
