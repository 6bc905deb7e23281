//! What is decided, and that nothing secret is shown.

use http::HeaderValue;

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
        .collect()
}

fn secrets(pairs: &[(&str, &str)]) -> LoginKeys {
    let pairs: Vec<_> = pairs.iter().map(|(kid, secret)| ((*kid).to_owned(), (*secret).to_owned())).collect();
    LoginKeys::default().with_secrets(&pairs).unwrap()
}

fn api_key(name: &str, key: &str) -> ApiKey {
    ApiKey {
        name: name.into(),
        sha256: key_sha256(key),
        scopes: Scopes::BACKEND,
        expires_at: None,
        revoked: false,
        stored: true,
    }
}

fn with(rules: Rules, api_keys: Vec<ApiKey>, logins: LoginKeys) -> Access {
    let access = Access::new(Rules { audience: "tidings".into(), ..rules });
    access.replace_keys(api_keys, logins);
    access
}

fn secured() -> Access {
    with(
        Rules { origins: origins(&["https://app.example.com"]), ..Rules::default() },
        vec![api_key("backend", "key one"), api_key("other", "key two")],
        secrets(&[("k1", "secret one"), ("k2", "secret two")]),
    )
}

fn origins(texts: &[&str]) -> Vec<OriginRule> {
    texts.iter().map(|text| OriginRule::parse(text).unwrap()).collect()
}

fn token(text: &str) -> Token {
    Token::parse(text, 256).unwrap()
}

fn at(secs: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(secs, 0).unwrap()
}

#[test]
fn without_credentials_only_this_machine_is_let_in() {
    let open = Access::default();
    assert!(!open.may_be_exposed());
    for host in ["localhost:4001", "127.0.0.1:4001", "127.3.2.1", "[::1]:4001", "[::1]", "app.localhost", "LOCALHOST"] {
        assert_eq!(open.admit(&headers(&[("host", host)])), Ok(()), "{host}");
    }
    for host in
        ["example.com", "127.0.0.1.example.com", "localhost.example.com:80", "10.0.0.1", "[::2]", "[::1]evil", ""]
    {
        assert_eq!(open.admit(&headers(&[("host", host)])), Err(Stranger::Host), "{host}");
    }
    assert_eq!(open.admit(&headers(&[])), Err(Stranger::Host), "no host");
    let proxied = ["forwarded", "via", "x-real-ip", "x-forwarded", "x-forwarded-for", "x-forwarded-server"];
    for name in proxied.into_iter().chain(["x-forwarded-host", "x-forwarded-proto", "x-forwarded-port"]) {
        assert_eq!(open.admit(&headers(&[("host", "localhost"), (name, "x")])), Err(Stranger::Proxied));
    }
    for origin in [
        "http://localhost:3000",
        "https://127.0.0.1",
        "http://[::1]:8080",
        "HTTP://LOCALHOST",
        "ws://127.0.0.1:4001",
        "wss://app.localhost",
    ] {
        assert_eq!(open.admit(&headers(&[("host", "[::1]"), ("origin", origin)])), Ok(()), "{origin}");
    }
    for origin in [
        "null",
        "http://evil.com",
        "http://localhost.evil.com",
        "file://",
        "capacitor://localhost",
        "http://localhost:99999",
        "localhost",
    ] {
        let from = headers(&[("host", "[::1]"), ("origin", origin)]);
        assert_eq!(open.admit(&from), Err(Stranger::Origin), "{origin}");
    }
    let with_null = Access::new(Rules { origins: origins(&["null"]), ..Rules::default() });
    assert_eq!(with_null.admit(&headers(&[("host", "[::1]"), ("origin", "null")])), Ok(()));
    let fetched = |site, dest| headers(&[("host", "[::1]"), ("sec-fetch-site", site), ("sec-fetch-dest", dest)]);
    for (site, dest) in
        [("same-origin", "empty"), ("none", "document"), ("cross-site", "document"), ("cross-site", "script")]
    {
        assert_eq!(open.admit(&fetched(site, dest)), Ok(()), "{site} {dest}");
    }
    for dest in ["empty", "image", "iframe", ""] {
        assert_eq!(open.admit(&fetched("cross-site", dest)), Err(Stranger::Origin), "{dest}");
    }
    let anybody = Access::new(Rules { insecure_open: true, ..Rules::default() });
    assert_eq!(anybody.admit(&headers(&[("host", "example.com"), ("origin", "null"), ("forwarded", "x")])), Ok(()));
    let origins = origins(&["https://app.example.com"]);
    let of_pages = Access::new(Rules { insecure_open: true, origins, ..Rules::default() });
    let from = |origin| of_pages.admit(&headers(&[("host", "example.com"), ("forwarded", "x"), ("origin", origin)]));
    assert_eq!((from("https://app.example.com"), from("https://example.com")), (Ok(()), Ok(())));
    assert_eq!((from("null"), from("https://evil.com")), (Err(Stranger::Origin), Err(Stranger::Origin)));
    assert_eq!(of_pages.admit(&headers(&[])), Ok(()), "no page");
}

#[test]
fn with_credentials_it_may_be_reached_and_pages_are_known_by_their_origin() {
    let access = secured();
    assert!(access.may_be_exposed());
    let unsigned = |unsigned| {
        let rules = Rules { unsigned, ..Rules::default() };
        with(rules, vec![api_key("backend", "key one")], secrets(&[("k1", "secret one")])).may_be_exposed()
    };
    assert!(unsigned(Unsigned::Warned) && !unsigned(Unsigned::Welcome));
    let from =
        |origin| access.admit(&headers(&[("host", "push.example.com"), ("x-forwarded-for", "x"), ("origin", origin)]));
    for known in [
        "https://app.example.com",
        "https://APP.example.com",
        "https://app.example.com:443",
        "wss://app.example.com",
        "https://push.example.com",
        "wss://push.example.com",
        "http://localhost:1",
    ] {
        assert_eq!(from(known), Ok(()), "{known}");
    }
    for evil in [
        "https://app.example.com.evil.com",
        "https://app.example.com:8443",
        "http://app.example.com",
        "null",
        "https://evil",
    ] {
        assert_eq!(from(evil), Err(Stranger::Origin), "{evil}");
    }
}

#[test]
fn producers_are_known_by_their_keys_for_as_long_as_those_are_good() {
    let (access, now) = (secured(), at(1000));
    let name = |access: &Access, pairs: &[(&'static str, &str)]| {
        access.caller(&headers(pairs), now).may(Scope::Push).map(str::to_owned)
    };
    assert_eq!(name(&access, &[("authorization", "Bearer key one")]).as_deref(), Some("backend"));
    assert_eq!(name(&access, &[("authorization", "bearer key two")]).as_deref(), Some("other"));
    assert_eq!(name(&access, &[("x-api-key", "key two")]).as_deref(), Some("other"));
    assert_eq!(access.used_keys().len(), 2);
    assert_eq!(access.used_keys(), []);
    let of_a_flag = ApiKey { stored: false, ..api_key("backend", "key one") };
    let flags = with(Rules::default(), vec![of_a_flag], LoginKeys::default());
    assert_eq!(name(&flags, &[("x-api-key", "key one")]).as_deref(), Some("backend"));
    assert_eq!(flags.used_keys(), [], "the table may have another one of that name");
    for wrong in [headers(&[]), headers(&[("x-api-key", "key")]), headers(&[("authorization", "Basic key one")])] {
        assert_eq!(access.caller(&wrong, now), Caller::Unknown);
    }
    assert_eq!(Access::default().caller(&headers(&[]), now), Caller::Anyone);

    let revoked = ApiKey { revoked: true, ..api_key("other", "key two") };
    let ended = ApiKey { expires_at: Some(now), ..api_key("third", "key three") };
    access.replace_keys(vec![revoked, ended], LoginKeys::default());
    for gone in ["key one", "key two", "key three"] {
        assert_eq!(access.caller(&headers(&[("x-api-key", gone)]), now), Caller::Unknown, "{gone}");
    }
    access.replace_keys(vec![], LoginKeys::default());
    assert_eq!(access.caller(&headers(&[]), now), Caller::Unknown, "without keys nobody is let in, not everybody");
    assert!(access.may_be_exposed());
}

#[test]
fn scopes_say_what_a_key_is_good_for() {
    for (text, good) in [("push", [true, false, false]), ("push,read", [true, true, false]), ("admin", [true; 3])] {
        let scopes: Scopes = text.parse().unwrap();
        assert_eq!([Scope::Push, Scope::Read, Scope::Admin].map(|scope| scopes.hold(scope)), good, "{text}");
        assert_eq!(scopes.to_string(), text);
    }
    assert!("".parse::<Scopes>().is_err() && "all".parse::<Scopes>().is_err());
}

#[test]
fn the_word_of_a_trusted_proxy_counts_and_no_other() {
    let proxies = ["127.0.0.1/32", "10.0.0.0/8"].map(|net| net.parse().unwrap()).to_vec();
    let access = Access::new(Rules { trusted_proxies: proxies, ..Rules::default() });
    for (peer, forwarded, client) in [
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("::ffff:127.0.0.1", "2001:db8::7", "2001:db8::7"),
        ("127.0.0.1", "6.6.6.6, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("127.0.0.1", "203.0.113.7:4711", "203.0.113.7"),
        ("127.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        ("127.0.0.1", "[2001:db8::7]", "2001:db8::7"),
        ("127.0.0.1", "nonsense", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.7, nonsense, 10.1.2.3", "10.1.2.3"),
        ("203.0.113.9", "6.6.6.6", "203.0.113.9"),
    ] {
        let found = access.client_address(peer.parse().unwrap(), &headers(&[("x-forwarded-for", forwarded)]));
        assert_eq!(found.to_string(), client, "{peer} {forwarded}");
    }
}

#[test]
fn a_login_is_good_for_its_token_its_time_and_its_key() {
    let access = secured();
    // As any backend computes it: HMAC-SHA256 of "tidings.login.v1\ntidings\n1\n2000" under "secret one".
    let sig = "790c4d8f7f80ec11ef13efe7dbe7bd646cf4305c2f33fc50d42936b6a1260d92";
    let signed = |exp, kid: &str, sig: &str| Credential::Signed { exp, kid: kid.into(), sig: sig.into() };
    let good = signed(2000, "k1", sig);
    assert_eq!(access.sign("1", 2000, None).unwrap().2, sig);
    let login = |credential: &Credential, name: &str, now| access.login(Some(credential), &token(name), at(now));
    assert_eq!(login(&good, "1", 1999), Ok(Some(at(2000))));
    for (bad, name, now) in [
        (good.clone(), "2", 1999),
        (good.clone(), "1", 2000),
        (signed(2001, "k1", sig), "1", 1999),
        (signed(2000, "k2", sig), "1", 1999),
        (signed(2000, "k3", sig), "1", 1999),
        (signed(2000, "k1", &sig[..62]), "1", 1999),
        (signed(2000, "k1", &sig.to_uppercase()), "1", 1999),
        (signed(2000, "k1", ""), "1", 1999),
    ] {
        assert_eq!(login(&bad, name, now), Err(Denied), "{bad:?}");
    }
    assert_eq!(access.login(None, &token("1"), at(0)), Err(Denied));
    assert_eq!(Access::default().login(None, &token("1"), at(0)), Ok(None));
    let (exp, kid, sig_2) = access.sign("1", 2000, Some("k2")).unwrap();
    assert_eq!(
        login(&signed(exp, &kid, &sig_2), "1", 0),
        Ok(Some(at(2000))),
        "both keys are good while one replaces the other"
    );
    let header = format!("Tidings kid=\"k1\", exp=2000, sig={sig}");
    let shown = headers(&[("authorization", &header)]);
    let user = |access: &Access, headers: &HeaderMap, name: &str| {
        access.user(&access.caller(headers, at(0)), headers, &token(name), at(0))
    };
    assert_eq!(user(&access, &shown, "1"), Ok(()));
    assert_eq!(user(&access, &shown, "2"), Err(Denied));
    assert_eq!(user(&Access::default(), &headers(&[]), "2"), Ok(()));
    let users = with(Rules::default(), vec![], secrets(&[("k1", "secret one")]));
    assert_eq!(user(&users, &headers(&[]), "1"), Err(Denied), "users have to show who they are");
    assert_eq!(user(&users, &shown, "1"), Ok(()));
}

#[test]
fn a_jwt_is_good_for_its_subject_its_audience_its_time_and_its_key() {
    let access = secured();
    let jwt = |header: &str, claims: &str, secret: &str| {
        let mut header: jsonwebtoken::Header = serde_json::from_str(header).unwrap();
        header.typ = None;
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        let claims: serde_json::Value = serde_json::from_str(claims).unwrap();
        Credential::Jwt(jsonwebtoken::encode(&header, &claims, &key).unwrap())
    };
    let (hs256, claims) = (r#"{"alg":"HS256","kid":"k1"}"#, r#"{"sub":"1","exp":2000,"aud":["x","tidings"]}"#);
    let login = |jwt: &Credential| access.login(Some(jwt), &token("1"), at(1999));
    assert_eq!(login(&jwt(hs256, claims, "secret one")), Ok(Some(at(2000))));
    for (header, claims, secret) in [
        (hs256, claims, "secret two"),
        (r#"{"alg":"HS256","kid":"k2"}"#, claims, "secret one"),
        (r#"{"alg":"HS256","kid":"k9"}"#, claims, "secret one"),
        (r#"{"alg":"HS256"}"#, claims, "secret one"),
        (r#"{"alg":"HS512","kid":"k1"}"#, claims, "secret one"),
        (hs256, r#"{"sub":"2","exp":2000,"aud":"tidings"}"#, "secret one"),
        (hs256, r#"{"sub":"1","exp":1999,"aud":"tidings"}"#, "secret one"),
        (hs256, r#"{"sub":"1","exp":2000,"aud":"other"}"#, "secret one"),
        (hs256, r#"{"sub":"1","exp":2000}"#, "secret one"),
        (hs256, r#"{"sub":"1","aud":"tidings"}"#, "secret one"),
        (hs256, r#"{"exp":2000,"aud":"tidings"}"#, "secret one"),
        (hs256, r#"{"sub":"1","exp":2000,"nbf":3000,"aud":"tidings"}"#, "secret one"),
    ] {
        assert_eq!(login(&jwt(header, claims, secret)), Err(Denied), "{header} {claims} {secret}");
    }
    for bad in ["", "a.b.c", "...", &"x".repeat(1_000_000)] {
        assert_eq!(login(&Credential::Jwt(bad.to_owned())), Err(Denied));
    }
}

#[test]
fn a_key_set_is_taken_whole_or_refused_with_the_place() {
    let set = |keys: &str| LoginKeys::default().with_key_set(&format!(r#"{{"keys":[{keys}]}}"#)).map(drop);
    let secret = r#"{"kty":"oct","kid":"a","alg":"HS256","k":"MDEyMzQ1Njc4OWFiY2RlZg"}"#;
    assert_eq!(set(secret), Ok(()));
    assert_eq!(set(&format!("{secret},{secret}")), Err(KeySetError::Twice("a".into())));
    for (bad, problem) in [
        (r#"{"kty":"oct","alg":"HS256","k":"MDEyMzQ1Njc4OWFiY2RlZg"}"#, "no kid"),
        (r#"{"kty":"oct","kid":"a","k":"MDEyMzQ1Njc4OWFiY2RlZg"}"#, "no alg"),
        (r#"{"kty":"oct","kid":"a","alg":"HS256","k":"c2hvcnQ"}"#, "16 bytes"),
        (r#"{"kty":"oct","kid":"a","alg":"RS256","k":"MDEyMzQ1Njc4OWFiY2RlZg"}"#, "does not fit"),
        (r#"{"kty":"RSA","kid":"a","alg":"RS256","n":"AQAB","e":"AQAB"}"#, "2048 bits"),
    ] {
        match set(&format!("{secret},{bad}").replacen("\"a\"", "\"b\"", 1)) {
            Err(KeySetError::Key { at: 1, problem: said }) => assert!(said.contains(problem), "{said}"),
            other => panic!("{bad}: {other:?}"),
        }
    }
    let error = LoginKeys::default().with_key_set("{\"keys\":[{\"k\":\"hidden").unwrap_err().to_string();
    assert!(!error.contains("hidden") && error.contains("line 1"), "{error}");
}

#[test]
fn unsigned_logins_may_be_let_in_for_a_while_but_no_wrong_ones() {
    for unsigned in [Unsigned::Warned, Unsigned::Welcome] {
        let access = with(Rules { unsigned, ..Rules::default() }, vec![], secrets(&[("k1", "secret")]));
        assert_eq!(access.login(None, &token("1"), at(0)), Ok(None));
        let wrong = Credential::Signed { exp: 9, kid: "k1".into(), sig: "00".into() };
        assert_eq!(access.login(Some(&wrong), &token("1"), at(0)), Err(Denied));
        assert_eq!(access.login(Some(&Credential::Jwt("a.b.c".into())), &token("1"), at(0)), Err(Denied));
    }
}

#[test]
fn nothing_that_is_secret_is_shown() {
    let shown = format!("{:?} {:?}", secured(), Credential::Jwt("secret.one.key".into()));
    assert!(!shown.contains("secret") && !shown.contains("key one"), "{shown}");
}
