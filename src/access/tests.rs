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
        assert_eq!(open.admit(&headers(&[("host", host)]), Resource::Action), Ok(()), "{host}");
    }
    for host in
        ["example.com", "127.0.0.1.example.com", "localhost.example.com:80", "10.0.0.1", "[::2]", "[::1]evil", ""]
    {
        assert_eq!(open.admit(&headers(&[("host", host)]), Resource::Action), Err(Stranger::Host), "{host}");
    }
    assert_eq!(open.admit(&headers(&[]), Resource::Action), Err(Stranger::Host), "no host");
    let proxied = ["forwarded", "via", "x-real-ip", "x-forwarded", "x-forwarded-for", "x-forwarded-server"];
    for name in proxied.into_iter().chain(["x-forwarded-host", "x-forwarded-proto", "x-forwarded-port"]) {
        assert_eq!(
            open.admit(&headers(&[("host", "localhost"), (name, "x")]), Resource::Action),
            Err(Stranger::Proxied)
        );
    }
    for origin in [
        "http://localhost:3000",
        "https://127.0.0.1",
        "http://[::1]:8080",
        "HTTP://LOCALHOST",
        "ws://127.0.0.1:4001",
        "wss://app.localhost",
    ] {
        assert_eq!(
            open.admit(&headers(&[("host", "[::1]"), ("origin", origin)]), Resource::Action),
            Ok(()),
            "{origin}"
        );
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
        assert_eq!(open.admit(&from, Resource::Action), Err(Stranger::Origin), "{origin}");
    }
    let with_null = Access::new(Rules { origins: origins(&["null"]), ..Rules::default() });
    assert_eq!(with_null.admit(&headers(&[("host", "[::1]"), ("origin", "null")]), Resource::Action), Ok(()));
    let anybody = Access::new(Rules { insecure_open: true, ..Rules::default() });
    assert_eq!(
        anybody.admit(&headers(&[("host", "example.com"), ("origin", "null"), ("forwarded", "x")]), Resource::Action),
        Ok(())
    );
    let origins = origins(&["https://app.example.com"]);
    let of_pages = Access::new(Rules { insecure_open: true, origins, ..Rules::default() });
    let from = |origin| {
        of_pages.admit(&headers(&[("host", "example.com"), ("forwarded", "x"), ("origin", origin)]), Resource::Action)
    };
    assert_eq!((from("https://app.example.com"), from("https://example.com")), (Ok(()), Ok(())));
    assert_eq!((from("null"), from("https://evil.com")), (Err(Stranger::Origin), Err(Stranger::Origin)));
    assert_eq!(of_pages.admit(&headers(&[]), Resource::Action), Ok(()), "no page");
}

/// How a browser describes what a page of elsewhere has it do.
const EMBEDDED: [(&str, &str); 8] = [
    ("no-cors", "script"),
    ("no-cors", "image"),
    ("no-cors", "style"),
    ("no-cors", "empty"),
    ("cors", "script"),
    ("navigate", "iframe"),
    ("navigate", "object"),
    ("", ""),
];

#[test]
fn what_a_page_of_elsewhere_embeds_or_opens_is_let_in_where_it_does_nothing() {
    let listed = with(
        Rules { origins: origins(&["https://app.example.com", "null"]), ..Rules::default() },
        Vec::new(),
        LoginKeys::default(),
    );
    let insecure = Rules { insecure_open: true, origins: origins(&["https://app.example.com"]), ..Rules::default() };
    for access in [Access::default(), secured(), listed, Access::new(insecure)] {
        let ask = |site: &str, mode: &str, dest: &str, resource| {
            let pairs =
                [("host", "[::1]"), ("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)];
            access.admit(&headers(&pairs), resource)
        };
        for site in ["cross-site", "same-site", "of-another-kind"] {
            for (mode, dest) in EMBEDDED {
                for resource in [Resource::Page, Resource::Action] {
                    assert_eq!(ask(site, mode, dest, resource), Err(Stranger::CrossSite), "{site} {mode} {dest}");
                }
                assert_eq!(ask(site, mode, dest, Resource::ClientFile), Ok(()), "{site} {mode} {dest}");
            }
            assert_eq!(ask(site, "navigate", "document", Resource::Action), Err(Stranger::CrossSite), "{site}");
            assert_eq!(ask(site, "navigate", "document", Resource::Page), Ok(()), "{site}");
        }
        for site in ["same-origin", "none"] {
            for (mode, dest) in EMBEDDED.into_iter().chain([("navigate", "document")]) {
                assert_eq!(ask(site, mode, dest, Resource::Action), Ok(()), "{site} {mode} {dest}");
            }
        }
    }
    let any = with(Rules { origins: origins(&["*"]), ..Rules::default() }, Vec::new(), LoginKeys::default());
    let embedded = [("host", "[::1]"), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")];
    assert_eq!(any.admit(&headers(&embedded), Resource::Action), Ok(()), "whoever lets in all lets in all");
}

#[test]
fn a_page_that_is_listed_asks_by_fetch_and_websocket_wherever_it_is() {
    let rules = Rules { origins: origins(&["https://app.example.com", "null"]), ..Rules::default() };
    let access = with(rules, Vec::new(), LoginKeys::default());
    let ask = |origin: &str, site: &str, mode: &str| {
        let pairs = [("host", "[::1]"), ("origin", origin), ("sec-fetch-site", site), ("sec-fetch-mode", mode)];
        access.admit(&headers(&pairs), Resource::Action)
    };
    for site in ["cross-site", "same-site"] {
        for mode in ["cors", "websocket"] {
            for origin in ["https://app.example.com", "null", "http://localhost:3000"] {
                assert_eq!(ask(origin, site, mode), Ok(()), "{origin} {site} {mode}");
            }
            assert_eq!(ask("https://evil.com", site, mode), Err(Stranger::Origin), "{site} {mode}");
        }
        assert_eq!(ask("https://app.example.com", site, "navigate"), Ok(()), "its forms too");
        assert_eq!(ask("https://evil.com", site, "navigate"), Err(Stranger::Origin), "a form");
        assert_eq!(ask("null", site, "navigate"), Err(Stranger::CrossSite), "a form that hides where it is from");
    }
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
    let from = |origin| {
        access.admit(
            &headers(&[("host", "push.example.com"), ("x-forwarded-for", "x"), ("origin", origin)]),
            Resource::Action,
        )
    };
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
    let login = |credential: &Credential, name: &str, now| access.login([credential], &token(name), at(now));
    assert_eq!(login(&good, "1", 1999), Ok(Some(at(2000))));
    for (bad, name, now) in [
        (good.clone(), "2", 1999),
        (good.clone(), "1", 2000),
        (signed(2001, "k1", sig), "1", 1999),
        (signed(2000, "k2", sig), "1", 1999),
        (signed(2000, "k3", sig), "1", 1999),
        (signed(2000, "k1", &sig[..62]), "1", 1999),
        (signed(2000, "k1", &format!("{}xy", &sig[..62])), "1", 1999),
        (signed(2000, "k1", ""), "1", 1999),
    ] {
        assert!(login(&bad, name, now).is_err(), "{bad:?}");
    }
    assert_eq!(login(&good, "1", 2000), Err(Denied::Expired));
    assert_eq!(login(&signed(2000, "k3", sig), "1", 1999), Err(Denied::UnknownKey));
    assert_eq!(login(&signed(2000, "k1", &sig.to_uppercase()), "1", 1999), Ok(Some(at(2000))), "hex in either case");
    assert_eq!(access.login([], &token("1"), at(0)), Err(Denied::Missing));
    assert_eq!(Access::default().login([], &token("1"), at(0)), Ok(None));
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
    assert_eq!(user(&access, &shown, "2"), Err(Denied::Signature));
    assert_eq!(user(&Access::default(), &headers(&[]), "2"), Ok(()));
    let users = with(Rules::default(), vec![], secrets(&[("k1", "secret one")]));
    assert_eq!(user(&users, &headers(&[]), "1"), Err(Denied::Missing), "users have to show who they are");
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
    let login = |jwt: &Credential| access.login([jwt], &token("1"), at(1999));
    assert_eq!(login(&jwt(hs256, claims, "secret one")), Ok(Some(at(2000))));
    for (header, claims, secret, why) in [
        (hs256, claims, "secret two", Denied::Signature),
        (r#"{"alg":"HS256","kid":"k2"}"#, claims, "secret one", Denied::Signature),
        (r#"{"alg":"HS256","kid":"k9"}"#, claims, "secret one", Denied::UnknownKey),
        (r#"{"alg":"HS256"}"#, claims, "secret one", Denied::SeveralKeys),
        (r#"{"alg":"HS512","kid":"k1"}"#, claims, "secret one", Denied::UnknownKey),
        (r#"{"alg":"HS256","kid":"k1","crit":["exp"]}"#, claims, "secret one", Denied::Critical),
        (r#"{"alg":"HS256","kid":"k1","crit":[]}"#, claims, "secret one", Denied::Critical),
        (hs256, r#"{"sub":"2","exp":2000,"aud":"tidings"}"#, "secret one", Denied::Subject),
        (hs256, r#"{"sub":1,"exp":1999,"aud":"tidings"}"#, "secret one", Denied::Expired),
        (hs256, r#"{"sub":"1","exp":1998.5,"aud":"tidings"}"#, "secret one", Denied::Expired),
        (hs256, r#"{"sub":"1","exp":-5,"aud":"tidings"}"#, "secret one", Denied::Expired),
        (hs256, r#"{"sub":"1","exp":1e300,"aud":"tidings"}"#, "secret one", Denied::TooFarAhead),
        (hs256, r#"{"sub":"1","exp":"2000","aud":"tidings"}"#, "secret one", Denied::Malformed),
        (hs256, r#"{"sub":"1","exp":2000,"aud":"other"}"#, "secret one", Denied::Audience),
        (hs256, r#"{"sub":"1","exp":2000}"#, "secret one", Denied::Audience),
        (hs256, r#"{"sub":"1","aud":"tidings"}"#, "secret one", Denied::Malformed),
        (hs256, r#"{"exp":2000,"aud":"tidings"}"#, "secret one", Denied::Malformed),
        (hs256, r#"{"sub":true,"exp":2000,"aud":"tidings"}"#, "secret one", Denied::Malformed),
        (hs256, r#"{"sub":["1"],"exp":2000,"aud":"tidings"}"#, "secret one", Denied::Malformed),
        (hs256, r#"{"sub":"1","exp":2000,"nbf":3000.5,"aud":"tidings"}"#, "secret one", Denied::TooEarly),
    ] {
        assert_eq!(login(&jwt(header, claims, secret)), Err(why), "{header} {claims} {secret}");
    }
    for bad in ["", "a.b.c", "...", &"x".repeat(1_000_000)] {
        assert_eq!(login(&Credential::Jwt(bad.to_owned())), Err(Denied::Malformed));
    }
    for (claims, end) in [
        (r#"{"sub":1,"exp":2000,"aud":"tidings"}"#, 2_000_000),
        (r#"{"sub":1.0,"exp":2000,"aud":"tidings"}"#, 2_000_000),
        (r#"{"sub":10e-1,"exp":2000,"aud":"tidings"}"#, 2_000_000),
        (r#"{"sub":"1","exp":2000.5,"aud":"tidings"}"#, 2_000_500),
        (r#"{"sub":"1","exp":2e3,"nbf":1998.75,"aud":"tidings"}"#, 2_000_000),
        (r#"{"sub":"1","exp":2000,"nbf":-1.5,"aud":"tidings"}"#, 2_000_000),
    ] {
        let end = DateTime::from_timestamp_millis(end);
        assert_eq!(login(&jwt(hs256, claims, "secret one")), Ok(end), "{claims}");
    }
    let large = jwt(hs256, r#"{"sub":9007199254740993,"exp":2000,"aud":"tidings"}"#, "secret one");
    let neighbour = access.login([&large], &token("9007199254740992"), at(1999));
    assert_eq!(neighbour, Err(Denied::Subject), "a number is its digits, not a float");
    let alone = with(Rules::default(), vec![], secrets(&[("k1", "secret one")]));
    let nameless = jwt(r#"{"alg":"HS256"}"#, claims, "secret one");
    assert_eq!(alone.login([&nameless], &token("1"), at(1999)), Ok(Some(at(2000))), "one key fits");
    let nameless = jwt(r#"{"alg":"HS256"}"#, claims, "secret two");
    assert_eq!(alone.login([&nameless], &token("1"), at(1999)), Err(Denied::Signature));
}

#[test]
fn a_login_may_not_be_good_for_longer_than_the_limit() {
    let rules = Rules { max_login: Some(TimeDelta::days(366)), ..Rules::default() };
    let access = with(rules, vec![], secrets(&[("k1", "secret one")]));
    let now = 1_800_000_000;
    let login = |exp| {
        let (exp, kid, sig) = access.sign("1", exp, None).unwrap();
        access.login([&Credential::Signed { exp, kid, sig }], &token("1"), at(now))
    };
    for good in [now + 1, now + 366 * 86_400] {
        assert_eq!(login(good), Ok(Some(at(good))));
    }
    for bad in [now + 366 * 86_400 + 1, (now + 60) * 1000, i64::MAX] {
        assert_eq!(login(bad), Err(Denied::TooFarAhead), "{bad}");
    }
    assert_eq!(login(i64::MIN), Err(Denied::TooFarAhead), "no time at all");
    let key = jsonwebtoken::EncodingKey::from_secret(b"secret one");
    let claims = serde_json::json!({"sub": "1", "aud": "tidings", "exp": (now + 60) * 1000});
    let jwt = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
    assert_eq!(access.login([&Credential::Jwt(jwt)], &token("1"), at(now)), Err(Denied::TooFarAhead));
    assert!(Denied::TooFarAhead.to_string().contains("milliseconds"));
}

#[test]
fn of_several_credentials_any_good_one_is_enough_and_the_longest_counts() {
    let access = secured();
    let signed = |exp, kid| {
        let (exp, kid, sig) = access.sign("1", exp, Some(kid)).unwrap();
        Credential::Signed { exp, kid, sig }
    };
    let (short, long, wrong) = (signed(2000, "k1"), signed(3000, "k2"), Credential::Jwt("a.b.c".into()));
    let login = |shown: &[&Credential]| access.login(shown.iter().copied(), &token("1"), at(1999));
    for shown in [&[&short, &long][..], &[&long, &short], &[&wrong, &long], &[&long, &wrong]] {
        assert_eq!(login(shown), Ok(Some(at(3000))), "{shown:?}");
    }
    assert_eq!(login(&[&wrong, &signed(5, "k1")]), Err(Denied::Malformed), "the first is told");

    let all = |pairs: &[(&'static str, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    };
    let header = |credential: &Credential| match credential {
        Credential::Signed { exp, kid, sig } => format!("Tidings kid={kid}, exp={exp}, sig={sig}"),
        Credential::Jwt(jwt) => format!("Bearer {jwt}"),
    };
    let user = |values: &[&str]| {
        let values: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
        access.user(&Caller::Unknown, &all(&values), &token("1"), at(1999))
    };
    assert_eq!(user(&["Basic dXNlcjpwYXNz", &header(&short)]), Ok(()));
    assert_eq!(user(&[&header(&wrong), &header(&long), "Bearer key one"]), Ok(()));
    assert_eq!(user(&["Basic dXNlcjpwYXNz"]), Err(Denied::Missing));
    assert_eq!(user(&[&[&*header(&wrong); 4][..], &[&header(&long)]].concat()), Err(Denied::Malformed), "only so many");
    let caller = |pairs: &[(&'static str, &str)]| access.caller(&all(pairs), at(0));
    for shown in [
        &[("x-api-key", "wrong"), ("authorization", "Bearer key one")][..],
        &[("x-api-key", "key one"), ("authorization", "Bearer wrong")],
        &[("authorization", "Basic dXNlcjpwYXNz"), ("authorization", "Bearer key one")],
        &[("x-api-key", "wrong"), ("x-api-key", "key one")],
    ] {
        assert_eq!(caller(shown).may(Scope::Push), Some("backend"), "{shown:?}");
    }
    assert_eq!(caller(&[("x-api-key", "wrong"), ("authorization", "Bearer wrong")]), Caller::Unknown);
    let only = |name: &str, key: &str, scope| ApiKey { scopes: Scopes::from_iter([scope]), ..api_key(name, key) };
    let keys = vec![only("pusher", "key p", Scope::Push), only("reader", "key r", Scope::Read)];
    let access = with(Rules::default(), keys, LoginKeys::default());
    for (first, second) in [("key p", "key r"), ("key r", "key p")] {
        let bearer = format!("Bearer {second}");
        let both = access.caller(&all(&[("x-api-key", first), ("authorization", &bearer)]), at(0));
        assert_eq!(
            (both.may(Scope::Push), both.may(Scope::Read), both.may(Scope::Admin)),
            (Some("pusher"), Some("pusher"), None)
        );
    }
}

/// The modulus of an RSA key of 2,048 bits, as far as anybody looks at it here.
fn rsa(members: &str) -> String {
    format!(r#"{{"kty":"RSA","n":"{}w","e":"AQAB"{members}}}"#, "v".repeat(341))
}

#[test]
fn keys_of_a_set_that_sign_no_logins_are_skipped() {
    let set = |keys: &[&str]| LoginKeys::default().with_key_set(&format!(r#"{{"keys":[{}]}}"#, keys.join(",")));
    let oct = r#"{"kty":"oct","kid":"a","alg":"HS256","k":"MDEyMzQ1Njc4OWFiY2RlZg"}"#;
    let okp = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let ec = r#"{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}"#;
    for good in [
        oct,
        r#"{"kty":"oct","k":"MDEyMzQ1Njc4OWFiY2RlZg"}"#,
        okp,
        ec,
        &rsa(""),
        &rsa(r#","kid":"s","use":"sig","alg":"RS256","x5c":["AA"],"x5t":"AA","issuer":"https://login.example.com""#),
        &rsa(r#","key_ops":["verify"]"#),
    ] {
        assert_eq!(set(&[good]).unwrap().skipped(), [""; 0], "{good}");
    }
    for (skipped, problem) in [
        (&*rsa(r#","kid":"e","use":"enc","alg":"RSA-OAEP""#), r#"kid "e": its use is "enc""#),
        (&rsa(r#","key_ops":["encrypt","wrapKey"]"#), "key_ops"),
        (&rsa(r#","alg":"PS256""#), "PS256"),
        (&rsa(r#","alg":"RSA-OAEP-256""#), "RSA-OAEP-256"),
        (&rsa(r#","alg":"of tomorrow""#), "of tomorrow"),
        (&rsa(r#","alg":7"#), "its alg is 7"),
        (r#"{"kty":"AKP","kid":"pq","alg":"ML-DSA-44","pub":"AA"}"#, "AKP"),
        (r#"{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}"#, "P-384"),
        (r#"{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}"#, "secp256k1"),
        (r#"{"kty":"OKP","crv":"X25519","x":"AA"}"#, "X25519"),
        (r#"{"kid":"nothing"}"#, "kty"),
        (r#"{"kty":"oct","kid":"b","alg":"HS256","k":"c2hvcnQ"}"#, "16 bytes"),
        (r#"{"kty":"oct","kid":"b","alg":"RS256","k":"MDEyMzQ1Njc4OWFiY2RlZg"}"#, "RS256"),
        (r#"{"kty":"oct","kid":"b","k":"not base64!"}"#, "parameters"),
        (r#"{"kty":"RSA","alg":"RS256","n":"AQAB","e":"AQAB"}"#, "2048 bits"),
        (r#"{"kty":"RSA"}"#, "parameters"),
        (r#""a string""#, "JSON object"),
    ] {
        let keys = set(&[skipped, oct]).unwrap_or_else(|error| panic!("{skipped}: {error}"));
        let [told] = keys.skipped() else { panic!("{skipped}: {:?}", keys.skipped()) };
        assert!(told.starts_with("keys[0]: ") && told.contains(problem), "{told}");
        assert!(!told.contains("vvv") && !told.contains("MDEy"), "{told}");
        match set(&[skipped]).map(drop) {
            Err(KeySetError::NoUsableKey(why)) => assert!(why.contains(problem), "{why}"),
            other => panic!("{skipped}: {other:?}"),
        }
    }
    assert_eq!(set(&[]).map(drop), Err(KeySetError::NoUsableKey(String::new())));
    assert_eq!(set(&[oct, oct]).map(drop), Err(KeySetError::Twice("a".into())));
    for bad in ["", "{}", "[]", r#"{"keys":7}"#] {
        assert!(matches!(LoginKeys::default().with_key_set(bad), Err(KeySetError::NoKeySet(_))), "{bad}");
    }
    let error = LoginKeys::default().with_key_set("{\"keys\":[{\"k\":\"hidden").unwrap_err().to_string();
    assert!(!error.contains("hidden") && error.contains("line 1"), "{error}");
}

#[test]
fn unsigned_logins_may_be_let_in_for_a_while_but_no_wrong_ones() {
    for unsigned in [Unsigned::Warned, Unsigned::Welcome] {
        let access = with(Rules { unsigned, ..Rules::default() }, vec![], secrets(&[("k1", "secret")]));
        assert_eq!(access.login([], &token("1"), at(0)), Ok(None));
        let wrong = Credential::Signed { exp: 9, kid: "k1".into(), sig: "00".into() };
        assert_eq!(access.login([&wrong], &token("1"), at(0)), Err(Denied::Signature));
        assert_eq!(access.login([&Credential::Jwt("a.b.c".into())], &token("1"), at(0)), Err(Denied::Malformed));
    }
}

#[test]
fn nothing_that_is_secret_is_shown() {
    let shown = format!("{:?} {:?}", secured(), Credential::Jwt("secret.one.key".into()));
    assert!(!shown.contains("secret") && !shown.contains("key one"), "{shown}");
}
