use super::*;
use serde_json::json;
use std::time::{Duration, Instant};

/// Templates that would take hours, gigabytes or the whole stack fail quickly, with the bound they exceeded.
#[test]
fn no_template_takes_all_time_or_memory() {
    let deep = |open: &str, close: &str, count: usize| {
        format!("{{{{ {}1{} }}}}", open.repeat(count), close.repeat(count))
    };
    let templates = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}".to_owned(),
        "{{ 'a' | indent(100000000000) }}".to_owned(),
        "{{ 'a' | indent(1000000, true) | indent(1000000) }}{{ '\\n' * 1000000 | indent(1000000, blank=true) }}".to_owned(),
        "{{ [[[[1]]]] | tojson(indent=100000000000) }}".to_owned(),
        "{% set x = 'a' * 1000000 %}{{ [[1,2,3],[4,5,6]] | tojson(indent=x) }}{{ range(9999) | list | tojson(separators=(x, x)) }}".to_owned(),
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}".to_owned(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}".to_owned(),
        "{% set ns = namespace(x=[1]) %}{% for i in range(50000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}".to_owned(),
        "{% set ns = namespace() %}{% for i in range(90000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        "{{ 'ab' * 10000000000 }}".to_owned(),
        "{{ [1] * 10000000000 }}".to_owned(),
        "{{ 'a'.center(10000000000) }}".to_owned(),
        "{{ 'a'.ljust(10000000000) }}{{ 'a'.rjust(99) }}".to_owned(),
        "{{ 'a'.zfill(10000000000) }}".to_owned(),
        "{{ '\\t'.expandtabs(10000000000) }}".to_owned(),
        "{{ 'a' | center(10000000000) }}".to_owned(),
        "{{ '%10000000000d' % 1 }}".to_owned(),
        "{{ '%.10000000000f' % 1 }}".to_owned(),
        "{{ '{:>10000000000}'.format(1) }}".to_owned(),
        "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}".to_owned(),
        "{% set x = 'a' * 100000 %}{{ x.join(x) }}".to_owned(),
        "{% set x = 'a' * 100000 %}{{ range(99999) | join(x) }}".to_owned(),
        "{{ range(99999) | slice(10000000000) | list }}".to_owned(),
        "{{ [1] | batch(10000000000, 1) | list }}".to_owned(),
        "{{ 2 ** 100000 }}".to_owned(),
        "{{ 10 ** 30 * 10 ** 30 }}".to_owned(),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}".to_owned(),
        "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{{ caller() }}{% endmacro %}{{ m() }}".to_owned(),
        "{% set ns = namespace(d={}) %}{% for i in range(99999) %}{% set ns.d = dict(ns.d, **{'k' ~ i: i}) %}{% endfor %}".to_owned(),
        deep("(", ")", 100_000),
        deep("[", "]", 100_000),
        deep("not ", "", 100_000),
        deep("-", "", 100_000),
        deep("1 + ", "", 100_000),
        deep("1 ~ ", "", 300_000),
        deep("1 if 1 else ", "", 50_000),
        format!("{{{{ x{} }}}}", ".x".repeat(100_000)),
        format!("{{{{ 1{} }}}}", " | string".repeat(100_000)),
        "{% if 1 %}".repeat(100_000),
        "{{ x }}".repeat(1_000_000),
        format!("{{{{ {} }}}}", "1,".repeat(100_000)),
    ];
    for template in templates {
        let start = Instant::now();
        let result = render(&template, &json!({}));
        let shown: String = template.chars().take(80).collect();
        assert!(result.is_err(), "{shown}");
        assert!(start.elapsed() < Duration::from_secs(20), "{shown} took {:?}", start.elapsed());
    }
}

#[test]
fn a_long_dialogue_stays_within_the_bounds() {
    let messages: Vec<Json> = (0..2000)
        .map(|turn| json!({"role": "user", "content": format!("Turn {turn}. ").repeat(50)}))
        .collect();
    let template = "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
        {{ '<|' + m.role + '|>' + m.content | trim + '<|end|>' }}{% endfor %}{{ ns.n }}";
    let text = render(template, &json!({ "messages": messages })).unwrap();
    assert!(text.len() > 1_000_000 && text.ends_with(">2000"));
}

#[test]
fn faults_name_the_line_and_the_construct() {
    let fault = |template: &str| render(template, &json!({})).unwrap_err().to_string();
    assert_eq!(fault("a\n{{ x.y }}"), "'x' is undefined (line 2 of the template)");
    assert!(fault("{% include 'x' %}").starts_with("{% include %} is not supported"));
    assert!(fault("{{ 1 | urlize }}").contains("the filter urlize is not supported"));
    assert!(fault("{{ raise_exception('only pairs') }}").starts_with("only pairs (line 1"));
}
