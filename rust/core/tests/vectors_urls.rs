//! Every conformance vector of the egress policy.

// Tests may fail by panicking.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod common;

use std::net::IpAddr;

use common::{rows, tests_path};
use serde_json::Value;
use worker_adapters_core::egress::{Destination, EgressPolicy, Host, Ranges};
use worker_adapters_core::error::Detail;

/// The policies as the vectors describe them.
fn policies() -> Value {
    let text = std::fs::read_to_string(tests_path("vectors/urls_policies.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn policy(name: &str) -> EgressPolicy {
    let described = &policies()[name];
    assert_eq!((&described["userinfo"], &described["redirects"]), (&false.into(), &false.into()));
    if let Some(listed) = described.get("allow") {
        let allow: Vec<String> = serde_json::from_value(listed.clone()).unwrap();
        return EgressPolicy::new(allow, Ranges::default()).unwrap();
    }
    assert_eq!(
        (&described["hosts"], &described["ip"]),
        (&"any".into(), &"global unicast only".into())
    );
    let schemes = described["schemes"].as_array().unwrap();
    let allow = schemes.iter().map(|scheme| format!("{}://*:*", scheme.as_str().unwrap()));
    EgressPolicy::new(allow, Ranges::default()).unwrap()
}

/// The answers of a name server, for the host as the URL has it.
fn answers(row: &Value, field: &str) -> Vec<IpAddr> {
    let Ok(destination) = Destination::parse(row["url"].as_str().unwrap()) else { return vec![] };
    let Host::Name(name) = destination.host() else { return vec![] };
    let answers = row[field][&**name].as_array();
    answers.into_iter().flatten().map(|ip| ip.as_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn every_vector() {
    let rows = rows("vectors/urls.jsonl");
    assert_eq!(rows.len(), 121);
    for row in rows {
        let (name, url) = (&row["name"], row["url"].as_str().unwrap());
        let policy = policy(row["policy"].as_str().unwrap());
        let verdict = policy.check(url, &answers(&row, "resolve"));
        let reason = match &verdict {
            Ok(_) if row.get("redirect_to").is_some() => Detail::from_status(302).as_str(),
            Ok(_) => "ok",
            Err(denied) => denied.reason.as_str(),
        };
        assert_eq!(reason, row["reason"], "{name}");
        assert_eq!(reason == "ok", row["allowed"], "{name}");

        // The same in steps, as a connection is made.
        let answers = answers(&row, "resolve");
        let in_steps = policy.check_url(url).and_then(|destination| {
            match destination.address() {
                Some(address) => policy.check_address(&destination, address)?,
                None => policy.check_addresses(&destination, &answers)?,
            }
            Ok(destination)
        });
        assert_eq!(in_steps.map_err(|d| d.reason), verdict.map_err(|d| d.reason), "{name}");
    }
}

#[test]
fn every_metadata_address_is_known() {
    let listed: Vec<IpAddr> = serde_json::from_value(policies()["metadata_ips"].clone()).unwrap();
    assert_eq!(listed.len(), 8);
    for address in listed {
        let base_url = match address {
            IpAddr::V4(v4) => format!("http://{v4}:8080"),
            IpAddr::V6(v6) => format!("http://[{v6}]:8080"),
        };
        let own = EgressPolicy::for_base_url(&base_url).unwrap();
        assert_eq!(own.check(&base_url, &[]).unwrap_err().reason.as_str(), "ip_metadata");
        let named = EgressPolicy::for_base_url("http://engine:8080").unwrap();
        let verdict = named.check("http://engine:8080", &[address]);
        assert_eq!(verdict.unwrap_err().reason.as_str(), "ip_metadata");
    }
}

#[test]
fn what_is_always_denied_cannot_be_allowed() {
    let everything = Ranges { loopback: true, private: true, nat64: true };
    let open =
        EgressPolicy::new(["https://*:*", "https://0.0.0.0/0:*", "https://[::/0]:*"], everything);
    let open = open.unwrap();
    let always: Vec<String> =
        serde_json::from_value(policies()["lan"]["always_deny"].clone()).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for row in rows("vectors/urls.jsonl") {
        let reason = row["reason"].as_str().unwrap();
        let Ok(destination) = Destination::parse(row["url"].as_str().unwrap()) else { continue };
        if let (Some(_), true) = (destination.address(), always.iter().any(|a| a == reason)) {
            let verdict = open.check(row["url"].as_str().unwrap(), &[]);
            assert_eq!(verdict.unwrap_err().reason.as_str(), reason, "{}", row["name"]);
            seen.insert(reason.to_owned());
        }
    }
    assert_eq!(seen, always.into_iter().collect());
}
