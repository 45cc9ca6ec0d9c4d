//! `jwt_authn`

use std::{
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA384, RsaKeyPair,
    },
};
use serde_json::{Value, json};

use crate::{
    Scene, ask, filter, get, logged, route, seen, settings,
    support::{culvert::cluster, upstream::Upstream},
    values,
};

struct Keys {
    rsa: RsaKeyPair,
    stranger: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

const SECRET: &[u8] = b"a secret of thirty-two bytes, hm";

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
    stranger: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
    p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
    p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
    ed: Ed25519KeyPair::generate().unwrap(),
});

fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().enumerate().fold(0_u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        (0..=group.len())
            .for_each(|at| out.push(char::from(ALPHABET[(bits >> (18 - 6 * at) & 63) as usize])));
    }
    out
}

/// The modulus in the DER of a public key of 2,048 bits (RFC 8017, appendix A.1.1).
fn modulus(key: &RsaKeyPair) -> Vec<u8> {
    let der = key.public_key().as_ref();
    let at = der.windows(5).position(|window| window == [2, 0x82, 1, 1, 0]).unwrap() + 5;
    der[at..at + 256].to_vec()
}

fn jwks() -> String {
    let point = |key: &EcdsaKeyPair, curve: &str, id: &str| {
        let (x, y) = key.public_key().as_ref()[1..].split_at((key.public_key().as_ref().len() - 1) / 2);
        json!({"kty": "EC", "crv": curve, "kid": id, "x": base64url(x), "y": base64url(y)})
    };
    let rsa = |id: &str, alg: &str| json!({"kty": "RSA", "kid": id, "alg": alg, "n": base64url(&modulus(&KEYS.rsa)), "e": "AQAB"});
    json!({"keys": [
        rsa("r", "RS256"),
        rsa("ps", "PS384"),
        point(&KEYS.p256, "P-256", "e"),
        point(&KEYS.p384, "P-384", "e3"),
        json!({"kty": "OKP", "crv": "Ed25519", "kid": "d", "x": base64url(KEYS.ed.public_key().as_ref())}),
        json!({"kty": "oct", "kid": "h", "k": base64url(SECRET)}),
        json!({"kty": "unheard-of"}),
    ]})
    .to_string()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims that are all right, with others in the place of some; null takes one away.
fn claims(other: Value) -> Value {
    let mut claims = json!({
        "iss": "iss", "aud": "a1", "sub": "s", "exp": now() + 1_000, "nn": 5, "bb": true, "list": ["x"],
        "deep": {"er": "q"}, "scope": "read write",
    });
    for (key, value) in other.as_object().unwrap() {
        claims[key] = value.clone();
    }
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

fn signed(alg: &str, kid: &str, claims: &Value) -> String {
    let header = json!({"alg": alg, "kid": kid}).to_string();
    let text = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.to_string().as_bytes()));
    let random = SystemRandom::new();
    let rsa = |key: &RsaKeyPair, encoding| {
        let mut signature = vec![0; 256];
        key.sign(encoding, &random, text.as_bytes(), &mut signature).unwrap();
        signature
    };
    let signature = match (alg, kid) {
        ("RS256", "stranger") => rsa(&KEYS.stranger, &RSA_PKCS1_SHA256),
        ("RS256", _) => rsa(&KEYS.rsa, &RSA_PKCS1_SHA256),
        ("PS384", _) => rsa(&KEYS.rsa, &RSA_PSS_SHA384),
        ("ES256", _) => KEYS.p256.sign(&random, text.as_bytes()).unwrap().as_ref().to_vec(),
        ("ES384", _) => KEYS.p384.sign(&random, text.as_bytes()).unwrap().as_ref().to_vec(),
        ("EdDSA", _) => KEYS.ed.sign(text.as_bytes()).as_ref().to_vec(),
        ("HS256", _) => {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), text.as_bytes()).as_ref().to_vec()
        }
        other => panic!("{other:?}"),
    };
    format!("{text}.{}", base64url(&signature))
}

fn token(other: Value) -> String {
    signed("RS256", "r", &claims(other))
}

/// The filter, with a provider `p` whose keys are in the configuration, and `q` whose keys the cluster `jwks` has.
fn authn(p: &str, q: &str, fields: &str) -> String {
    let local = serde_json::to_string(&jwks()).unwrap();
    filter(
        "jwt",
        "jwt_authn.v3.JwtAuthentication",
        &format!(
            "providers: {{p: {{issuer: iss, audiences: [\"https://a1/\", a2], local_jwks: {{inline_string: {local}}}, {p}}}, \
             q: {{issuer: iss2, remote_jwks: {{http_uri: {{uri: \"http://keys.example/set?a=b\", cluster: jwks, timeout: \
             20s}}, {q}}}}}}}, {fields}"
        ),
    )
}

/// A server of keys; the status it answers with, and the requests it has seen.
fn server() -> (Upstream, Arc<AtomicU16>, Arc<Mutex<Vec<String>>>) {
    let (status, seen) = (Arc::new(AtomicU16::new(200)), Arc::new(Mutex::new(Vec::new())));
    let (told, kept) = (status.clone(), seen.clone());
    let upstream = Upstream::answering(move |head| {
        kept.lock().unwrap().push(head.to_owned());
        let body = jwks();
        let status = told.load(Ordering::SeqCst);
        format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    });
    (upstream, status, seen)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[test]
fn tokens_are_verified_and_told_of() {
    let p = "forward: false, claim_to_headers: [{header_name: x-n, claim_name: nn}, {header_name: x-b, claim_name: bb}, \
             {header_name: x-l, claim_name: list}, {header_name: x-d, claim_name: deep.er}, {header_name: x-none, \
             claim_name: none}], forward_payload_header: x-payload, pad_forward_payload_header: true, payload_in_metadata: \
             who, normalize_payload_in_metadata: {space_delimited_claims: [scope]}, header_in_metadata: head, from_headers: \
             [{name: Authorization, value_prefix: \"Bearer \"}, {name: x-raw}], from_params: [tok], from_cookies: [ck], \
             clear_route_cache: true";
    let (keys, _, _) = server();
    let rules = "rules: [{match: {prefix: /free}}, {match: {prefix: /}, requires: {provider_name: p}}]";
    let read = |path: &str, value: &str| {
        format!("{{metadata: {{filter: envoy.filters.http.jwt_authn, path: [{path}], value: {value}}}}}")
    };
    let both = format!(
        "{{and_rules: {{rules: [{}, {}]}}}}",
        read("{key: who}, {key: scope}", "{list_match: {one_of: {string_match: {exact: write}}}}"),
        read("{key: head}, {key: alg}", "{string_match: {exact: RS256}}")
    );
    let filters = [
        authn(p, "", rules),
        filter(
            "late",
            "rbac.v3.RBAC",
            &format!(
                "rules: {{action: DENY, policies: {{p: {{permissions: [{both}], principals: [{{header: {{name: x-red, \
                 present_match: true}}}}]}}}}}}"
            ),
        ),
    ];
    let routes = [
        "{match: {prefix: /free}, route: {cluster: up}}".to_owned(),
        "{match: {prefix: /, headers: [{name: x-n, string_match: {exact: \"6\"}}]}, direct_response: {status: 299}}".to_owned(),
        route("/", &[]),
    ];
    let clusters = cluster("jwks", &[keys.address]);
    Scene { filters: &filters, routes: &routes, clusters, ..Scene::default() }.run(|culvert, port| {
        let with = |token: &str| get(port, "/x", &[("authorization", &bearer(token))]);
        let fine = token(json!({}));
        let answer = get(port, "/x", &[("authorization", &bearer(&fine)), ("x-n", "9"), ("x-none", "9")]);
        assert_eq!(answer.status, 200, "{}", answer.text());
        for (name, expected) in [
            ("x-n", &["5"][..]),
            ("x-b", &["true"]),
            ("x-l", &[&base64url(b"[\"x\"]")]),
            ("x-d", &["q"]),
            ("x-none", &[]),
            ("authorization", &[]),
        ] {
            assert_eq!(seen(&answer, name), expected, "{name}");
        }
        let payload = fine.split('.').nth(1).unwrap();
        let padded = seen(&answer, "x-payload");
        assert!(
            padded[0].len().is_multiple_of(4) && padded[0].trim_end_matches('=') == payload,
            "{padded:?}"
        );
        assert_eq!(get(port, "/x", &[("authorization", &bearer(&fine)), ("x-red", "1")]).status, 403);
        assert_eq!(with(&token(json!({"nn": 6}))).status, 299, "claims lead to another route");

        for (alg, kid) in
            [("PS384", "ps"), ("ES256", "e"), ("ES384", "e3"), ("EdDSA", "d"), ("HS256", "h"), ("RS256", "")]
        {
            assert_eq!(with(&signed(alg, kid, &claims(json!({})))).status, 200, "{alg}");
        }
        let param = get(port, &format!("/x?a=1&tok={fine}&b=2"), &[]);
        assert!(param.text().starts_with("GET /x?a=1&b=2 HTTP/1.1\r\n"), "{}", param.text());
        assert_eq!(get(port, "/x", &[("cookie", &format!("a=b; ck={fine}"))]).status, 200);
        assert_eq!(get(port, "/x", &[("x-raw", &fine)]).status, 200);
        assert_eq!(get(port, "/free", &[]).status, 200);

        let cut = format!("{}AAAA", &fine[..fine.len() - 4]);
        for (name, token, status, text) in [
            ("expired", token(json!({"exp": now() - 100})), 401, "Jwt is expired"),
            ("skew", token(json!({"exp": now() - 30})), 200, ""),
            ("early", token(json!({"nbf": now() + 100})), 401, "Jwt not yet valid"),
            ("forever", token(json!({"exp": null})), 200, ""),
            ("issuer", token(json!({"iss": "other"})), 401, "Jwt issuer is not configured"),
            ("audience", token(json!({"aud": "a9"})), 403, "Audiences in Jwt are not allowed"),
            ("audiences", token(json!({"aud": ["a9", "http://a2"]})), 200, ""),
            (
                "stranger",
                signed("RS256", "stranger", &claims(json!({}))),
                401,
                "Jwks doesn't have key to match kid or alg from Jwt",
            ),
            (
                "key of another",
                signed("RS256", "ps", &claims(json!({}))),
                401,
                "Jwks doesn't have key to match kid or alg from Jwt",
            ),
            ("cut", cut, 401, "Jwt verification fails"),
            (
                "garbage",
                "abc".to_owned(),
                401,
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            ),
        ] {
            let answer = with(&token);
            assert_eq!(answer.status, status, "{name}: {}", answer.text());
            if status != 200 {
                assert_eq!(answer.text(), text, "{name}");
                let realm = "Bearer realm=\"http://test/x\", error=\"invalid_token\"";
                assert_eq!(values(&answer, "www-authenticate"), [realm], "{name}");
            }
        }
        let missing = get(port, "/x", &[("authorization", "Basic abc")]);
        assert_eq!((missing.status, missing.text().as_str()), (401, "Jwt is missing"));
        assert_eq!(missing.header("www-authenticate"), Some("Bearer realm=\"http://test/x\""));
        logged(culvert, "/x 401 - jwt_authn_access_denied{Jwt_is_missing} 0");
        let two =
            get(port, "/x", &[("authorization", &bearer(&token(json!({"aud": "a9"})))), ("x-raw", &fine)]);
        assert_eq!(two.status, 403, "all tokens have to be valid");
        let grpc = ask(port, "POST", "/x", &[("content-type", "application/grpc")], b"");
        assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("16")));
        let stat = |name: &str| culvert.stat(&format!("http.s.jwt_authn.{name}"));
        assert_eq!((stat("allowed"), stat("denied")), (16, 11));
        assert_eq!(stat("jwks_fetch_success"), 0, "nobody has needed them");
    });
}

#[test]
fn matchers_of_access_look_at_claims() {
    let single = |path: &str, value: &str| {
        format!(
            "{{single_predicate: {{input: {{name: i, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.matching.\
             common_inputs.network.v3.DynamicMetadataInput, filter: envoy.filters.http.jwt_authn, path: [{path}]}}}}, \
             custom_match: {{name: m, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.matching.input_matchers.\
             metadata.v3.Metadata, {value}}}}}}}}}"
        )
    };
    let action = |action: &str| {
        format!(
            "{{action: {{name: a, typed_config: {{\"@type\": type.googleapis.com/envoy.config.rbac.v3.Action, name: {action}, \
             action: {action}}}}}}}"
        )
    };
    let both = [
        single("{key: who}, {key: scope}", "value: {list_match: {one_of: {string_match: {exact: write}}}}"),
        single("{key: who}, {key: deep}, {key: er}", "value: {string_match: {exact: no}}, invert: true"),
    ];
    let rules = format!(
        "matcher: {{matcher_list: {{matchers: [{{predicate: {{and_matcher: {{predicate: [{}]}}}}, on_match: {}}}]}}, \
         on_no_match: {}}}",
        both.join(", "),
        action("ALLOW"),
        action("DENY")
    );
    let p = "payload_in_metadata: who, normalize_payload_in_metadata: {space_delimited_claims: [scope]}";
    let authn = authn(p, "", "rules: [{match: {prefix: /}, requires: {provider_name: p}}]");
    let filters = [authn, filter("late", "rbac.v3.RBAC", &rules)];
    let clusters = cluster("jwks", &["127.0.0.1:9".parse().unwrap()]);
    Scene { filters: &filters, routes: &[route("/", &[])], clusters, ..Scene::default() }.run(|_, port| {
        for (claims, status) in [
            (json!({}), 200),
            (json!({"deep": null}), 200),
            (json!({"deep": {"er": "no"}}), 403),
            (json!({"scope": "read"}), 403),
            (json!({"scope": null}), 403),
            (json!({"scope": ["other", "write"]}), 200),
        ] {
            let answer = get(port, "/", &[("authorization", &bearer(&token(claims.clone())))]);
            assert_eq!(answer.status, status, "{claims}");
        }
    });
}

#[test]
fn requirements_are_put_together() {
    let list = |requirements: &str| format!("{{requirements: [{requirements}]}}");
    let rule =
        |prefix: &str, requires: &str| format!("{{match: {{prefix: {prefix}}}, requires: {requires}}}");
    let rules = [
        rule("/any", &format!("{{requires_any: {}}}", list("{provider_name: p}, {provider_name: q}"))),
        rule("/all", &format!("{{requires_all: {}}}", list("{provider_name: p}, {provider_name: q}"))),
        rule("/maybe", &format!("{{requires_any: {}}}", list("{provider_name: p}, {allow_missing: {}}"))),
        rule(
            "/whatever",
            &format!("{{requires_any: {}}}", list("{provider_name: p}, {allow_missing_or_failed: {}}")),
        ),
        rule("/audience", "{provider_and_audiences: {provider_name: p, audiences: [a9]}}"),
        rule("/missing", "{allow_missing: {}}"),
        "{match: {prefix: /named}, requirement_name: n}".to_owned(),
        rule("/", "{provider_name: p}"),
    ];
    let fields = format!(
        "rules: [{}], requirement_map: {{n: {{provider_name: q}}}}, bypass_cors_preflight: true, strip_failure_response: \
         true, stat_prefix: own",
        rules.join(", ")
    );
    let p = "forward: true, subjects: {prefix: s}, require_expiration: true, max_lifetime: 2000s, clock_skew_seconds: 5";
    let (keys, _, asked) = server();
    const PER_ROUTE: &str = "jwt_authn.v3.PerRouteConfig";
    let routes = [
        route("/off", &[settings("jwt", PER_ROUTE, "disabled: true")]),
        route("/mapped", &[settings("jwt", PER_ROUTE, "requirement_name: n")]),
        route("/wrong", &[settings("jwt", PER_ROUTE, "requirement_name: nobody")]),
        route("/", &[]),
    ];
    let clusters = cluster("jwks", &[keys.address]);
    let filters = [authn(p, "", &fields)];
    Scene { filters: &filters, routes: &routes, clusters, ..Scene::default() }.run(|culvert, port| {
        let with = |path: &str, token: &str| get(port, path, &[("authorization", &bearer(token))]).status;
        let (p, q) = (token(json!({})), token(json!({"iss": "iss2", "aud": null})));
        let neither = token(json!({"iss": "iss3"}));
        for (path, token, status) in [
            ("/any", &p, 200),
            ("/any", &q, 200),
            ("/any", &neither, 401),
            ("/all", &p, 401),
            ("/maybe", &neither, 401),
            ("/whatever", &neither, 200),
            ("/audience", &p, 403),
            ("/audience", &token(json!({"aud": "a9"})), 200),
            ("/missing", &p, 200),
            ("/missing", &neither, 401),
            ("/named", &q, 200),
            ("/named", &p, 401),
            ("/off", &neither, 200),
            ("/mapped", &q, 200),
            ("/mapped", &p, 401),
            ("/wrong", &p, 403),
            ("/", &token(json!({"sub": "x"})), 401),
            ("/", &token(json!({"exp": null})), 401),
            ("/", &token(json!({"exp": now() + 5_000})), 401),
            ("/", &token(json!({"exp": now() - 30})), 401),
        ] {
            assert_eq!(with(path, token), status, "{path} {token}");
        }
        assert_eq!((get(port, "/maybe", &[]).status, get(port, "/missing", &[]).status), (200, 200));
        let refused = get(port, "/", &[]);
        assert_eq!((refused.status, refused.body.len(), refused.header("www-authenticate")), (401, 0, None));
        let preflight = [("origin", "a"), ("access-control-request-method", "GET")];
        assert_eq!(ask(port, "OPTIONS", "/", &preflight, b"").status, 200);
        assert_eq!(culvert.stat("http.s.jwt_authn.own.cors_preflight_bypassed"), 1);
        assert_eq!(seen(&get(port, "/", &[("authorization", &bearer(&p))]), "authorization"), [bearer(&p)]);
        let asked = std::mem::take(&mut *asked.lock().unwrap());
        assert!((1..=2).contains(&asked.len()), "once for each worker: {asked:?}");
        assert!(asked[0].starts_with("GET /set?a=b HTTP/1.1\r\nhost: keys.example\r\n"), "{asked:?}");
    });
}

#[test]
fn tokens_count_at_the_places_of_their_provider() {
    let rule =
        |prefix: &str, requires: &str| format!("{{match: {{prefix: {prefix}}}, requires: {requires}}}");
    let list = |kind: &str, requirements: &str| format!("{{{kind}: {{requirements: [{requirements}]}}}}");
    let rules = [
        rule("/missing", "{allow_missing: {}}"),
        rule("/failed", "{allow_missing_or_failed: {}}"),
        rule("/beside", &list("requires_any", "{allow_missing: {}}, {provider_name: p}")),
        rule(
            "/nested",
            &list(
                "requires_any",
                &format!(
                    "{}, {{allow_missing: {{}}}}",
                    list("requires_all", "{provider_name: p}, {provider_name: q}")
                ),
            ),
        ),
        rule("/twice", &list("requires_all", "{provider_name: p}, {provider_name: p}")),
        rule("/nobody", "{provider_and_audiences: {provider_name: p, audiences: []}}"),
        rule("/", &list("requires_any", "{provider_name: p}, {provider_name: q}")),
    ];
    let fields = format!("rules: [{}]", rules.join(", "));
    let p = "from_headers: [{name: x-p}, {name: x-both, value_prefix: \"T \"}], from_params: [tp], from_cookies: [cp], \
             forward_payload_header: x-payload";
    let q = "from_headers: [{name: x-q}, {name: x-both, value_prefix: \"T \"}]";
    let q = format!(
        "issuer: iss2, {q}, forward: true, claim_to_headers: [{{header_name: x-is, claim_name: iss}}],"
    );
    let filter = authn(p, "", &fields).replace("issuer: iss2,", &q);
    let (keys, _, _) = server();
    let clusters = cluster("jwks", &[keys.address]);
    Scene { filters: &[filter], routes: &[route("/", &[])], clusters, ..Scene::default() }.run(|_, port| {
        let (p, q) = (token(json!({})), token(json!({"iss": "iss2"})));
        let other = token(json!({"aud": "a9"}));
        let blank = format!("{p} AAAA");
        const STRANGER: &str = "Jwt issuer is not configured";
        for (path, headers, status, text) in [
            ("/", vec![("x-p", &p)], 200, ""),
            ("/", vec![("x-q", &q)], 200, "x-is"),
            ("/", vec![("x-q", &p)], 401, STRANGER),
            ("/", vec![("x-p", &q)], 401, STRANGER),
            ("/missing", vec![("x-p", &p)], 200, "x-payload"),
            ("/missing", vec![("x-q", &p)], 401, STRANGER),
            ("/missing", vec![("x-p", &q)], 401, STRANGER),
            ("/failed", vec![("x-q", &p), ("x-p", &q)], 200, ""),
            ("/failed", vec![("x-q", &p), ("x-p", &p)], 200, "x-payload"),
            ("/beside", vec![("x-q", &p)], 200, ""),
            ("/beside", vec![("x-p", &q)], 401, STRANGER),
            ("/nested", vec![("x-p", &p), ("x-q", &p)], 401, STRANGER),
            ("/nested", vec![("x-q", &q)], 200, ""),
            ("/", vec![("x-p", &blank)], 401, "Jwt verification fails"),
            ("/twice", vec![("x-p", &p)], 401, "Jwt is missing"),
            ("/nobody", vec![("x-p", &other)], 403, "Audiences in Jwt are not allowed"),
        ] {
            let given: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = get(port, path, &given);
            assert_eq!(answer.status, status, "{path} {given:?}: {}", answer.text());
            if status != 200 {
                assert_eq!(answer.text(), text, "{path} {given:?}");
                continue;
            }
            for told in ["x-payload", "x-is"].into_iter().filter(|_| path != "/") {
                assert_eq!(!seen(&answer, told).is_empty(), told == text, "{path} {given:?}: {told}");
            }
        }
        for (name, value) in [("x-p", ""), ("x-both", "T ."), ("x-p", "\u{e9}")] {
            assert_eq!(get(port, "/missing", &[(name, value)]).status, 401, "no token is not a missing one");
        }
        assert_eq!(get(port, "/missing", &[("x-both", &format!("U T  {p}"))]).status, 200);
        assert_eq!(get(port, &format!("/missing?%74p={q}"), &[]).status, 401, "a name that is encoded");
        assert_eq!(get(port, &format!("/missing?tp={p}&tp=x"), &[]).status, 200, "the first one counts");
        assert_eq!(get(port, "/missing", &[("cookie", &format!("cp={p}; cp=x"))]).status, 200);
    });
}

#[test]
fn keys_are_fetched_ahead_of_requests_and_again() {
    let (keys, status, asked) = server();
    let q = "async_fetch: {failed_refetch_duration: 0.05s}, cache_duration: 0.2s, retry_policy: {retry_on: 5xx, \
             num_retries: 1, retry_back_off: {base_interval: 0.001s}}";
    let filters = [authn("", q, "rules: [{match: {prefix: /}, requires: {provider_name: q}}]")];
    let clusters = cluster("jwks", &[keys.address]);
    Scene { filters: &filters, routes: &[route("/", &[])], clusters, ..Scene::default() }.run(
        |culvert, port| {
            let stat = |name: &str| culvert.stat(&format!("http.s.jwt_authn.{name}"));
            culvert.wait_until("the keys are fetched, and again", |_| stat("jwks_fetch_success") >= 4);
            status.store(503, Ordering::SeqCst);
            culvert.wait_until("they cannot be fetched", |_| stat("jwks_fetch_failed") >= 2);
            assert!(culvert.stat("cluster.jwks.upstream_rq_retry") >= 2);
            let q = token(json!({"iss": "iss2"}));
            // Not every worker need have fetched them before.
            culvert.wait_until("those from before still do", |_| {
                get(port, "/", &[("authorization", &bearer(&q))]).status == 200
            });
            status.store(200, Ordering::SeqCst);
            asked.lock().unwrap().clear();
        },
    );
}

#[test]
fn without_keys_nobody_is_let_through() {
    let (keys, status, _) = server();
    status.store(500, Ordering::SeqCst);
    let filters =
        [authn("", "cache_duration: 3600s", "rules: [{match: {prefix: /}, requires: {provider_name: q}}]")];
    let clusters = cluster("jwks", &[keys.address]);
    Scene { filters: &filters, routes: &[route("/", &[])], clusters, ..Scene::default() }.run(
        |culvert, port| {
            let q = token(json!({"iss": "iss2"}));
            let with = || get(port, "/", &[("authorization", &bearer(&q))]);
            let refused = with();
            assert_eq!((refused.status, refused.text().as_str()), (401, "Jwks remote fetch is failed"));
            assert!(culvert.stat("http.s.jwt_authn.jwks_fetch_failed") == 1);
            status.store(200, Ordering::SeqCst);
            assert_eq!(with().status, 200, "the next request tries again");
            status.store(500, Ordering::SeqCst);
        },
    );
}
