use serde_json::{Value, json};

use super::*;

fn config() -> DecoderConfig {
    DecoderConfig::from_hf(&json!({
        "model_type": "llama", "vocab_size": 17, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64,
    }))
    .unwrap()
}

type Tensors = Vec<(String, String, Vec<i64>)>;

fn tensors(head: HeadKind) -> Tensors {
    config().tensors(head).into_iter().map(|(name, shape)| (name, "F32".to_owned(), shape)).collect()
}

/// A header for tensors laid out one after the other, and the length of the file that it describes.
fn header(tensors: &Tensors) -> (Vec<u8>, u64) {
    let mut at = 0;
    let mut object = serde_json::Map::new();
    for (name, dtype, shape) in tensors {
        let width = match dtype.as_str() {
            "F32" | "I32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        let end = at + width * shape.iter().product::<i64>();
        object.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let header = serde_json::to_vec(&object).unwrap();
    let length = 8 + header.len() as u64 + at.unsigned_abs();
    (header, length)
}

fn files(tensors: &Tensors) -> WeightFiles {
    let mut files = WeightFiles::default();
    let (header, length) = header(tensors);
    files.add("model.safetensors".into(), &header, length).unwrap();
    files
}

fn refusal(head: HeadKind, change: impl FnOnce(&mut Tensors)) -> String {
    let mut tensors = tensors(head);
    change(&mut tensors);
    files(&tensors).check(&config(), head).unwrap_err().to_string()
}

const LANGUAGE: HeadKind = HeadKind::LanguageModel;

#[test]
fn the_tensors_of_a_model_are_accepted_under_either_head() {
    for head in [LANGUAGE, HeadKind::Reward] {
        let mut tensors = tensors(head);
        files(&tensors).check(&config(), head).unwrap();
        tensors[0].1 = "BF16".to_owned();
        tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), "F32".into(), vec![2]));
        files(&tensors).check(&config(), head).unwrap();
    }
}

#[test]
fn quantized_weights_are_named_with_their_library() {
    let added = |name: &str, dtype: &str| {
        let (name, dtype) = (name.to_owned(), dtype.to_owned());
        refusal(LANGUAGE, |tensors| tensors.push((name, dtype, vec![4])))
    };
    for (name, by) in [
        ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.SCB", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "FP8"),
        ("model.layers.0.mlp.up_proj.weight_packed", "compressed-tensors"),
    ] {
        let message = added(name, "U8");
        assert!(message.contains(name) && message.contains(&format!("quantized ({by})")), "{message}");
    }
    let message = refusal(LANGUAGE, |tensors| tensors[0].1 = "F8_E4M3".into());
    assert!(message.contains("stored as F8_E4M3"), "{message}");
    let message = refusal(LANGUAGE, |tensors| tensors[0].1 = "I32".into());
    assert!(message.contains("stored as I32"), "{message}");
}

#[test]
fn a_checkpoint_with_other_prefixes_is_refused_with_advice() {
    let message = refusal(LANGUAGE, |tensors| {
        for (name, ..) in tensors {
            *name = name.trim_start_matches("model.").to_owned();
        }
    });
    assert!(message.contains("lack the prefix \"model.\""), "{message}");
    let message = refusal(LANGUAGE, |tensors| {
        for (name, ..) in tensors {
            *name = format!("module.{name}");
        }
    });
    assert!(message.contains("start with \"module.model.\""), "{message}");
}

#[test]
fn a_tensor_out_of_place_is_named_with_its_shapes() {
    let message = refusal(LANGUAGE, |tensors| tensors.retain(|(name, ..)| name != "model.norm.weight"));
    assert!(message.contains("model.norm.weight") && message.contains("[8]"), "{message}");
    let message =
        refusal(LANGUAGE, |tensors| tensors.push(("model.norm.bias".into(), "F32".into(), vec![8])));
    assert!(message.contains("model.norm.bias") && message.contains("no place"), "{message}");
    let message = refusal(LANGUAGE, |tensors| tensors[0].2 = vec![18, 8]);
    assert!(message.contains("[18, 8]") && message.contains("[17, 8]"), "{message}");
    let message = refusal(HeadKind::Reward, |tensors| tensors.last_mut().unwrap().2 = vec![2, 8]);
    assert!(message.contains("score.weight") && message.contains("one label"), "{message}");
    for head in ["v_head.summary.weight", "value_head.weight", "classifier.weight", "score.bias"] {
        let message = refusal(HeadKind::Reward, |tensors| {
            tensors.push((head.into(), "F32".into(), vec![1, 8]));
        });
        assert!(message.contains(head) && message.contains("save it under that name"), "{message}");
    }
    let both = refusal(HeadKind::Reward, |tensors| {
        tensors.push(("lm_head.weight".into(), "F32".into(), vec![17, 8]));
    });
    assert!(both.contains("remove the tensor"), "{both}");
    assert!(files(&tensors(LANGUAGE)).check(&config(), HeadKind::Reward).is_err());
    assert!(files(&tensors(HeadKind::Reward)).check(&config(), LANGUAGE).is_err());
}

#[test]
fn a_tied_head_may_be_stored() {
    let mut config = config();
    config.tied_embeddings = true;
    let files = files(&tensors(LANGUAGE));
    files.check(&config, LANGUAGE).unwrap();
    assert!(files.stores_tied_head(&config, LANGUAGE));
    config.tied_embeddings = false;
    assert!(!files.stores_tied_head(&config, LANGUAGE));
}

#[test]
fn a_header_that_does_not_describe_its_file_is_refused() {
    let path = Path::new("model.safetensors");
    assert!(header_length(path, &[0; 7], 7).unwrap_err().to_string().contains("7 bytes are too few"));
    let lfs = header_length(path, b"version ", 130).unwrap_err().to_string();
    assert!(lfs.contains("not a safetensors file") && lfs.contains("git lfs pull"), "{lfs}");
    let page = header_length(path, b"<!DOCTYP", 130).unwrap_err().to_string();
    assert!(page.contains("starts with the text \"<!DOCTYP\""), "{page}");
    assert_eq!(header_length(path, &2_u64.to_le_bytes(), 10).unwrap(), 2);
    let (header, length) = header(&tensors(LANGUAGE));
    let add = |header: &[u8], length: u64| {
        WeightFiles::default().add(path.to_owned(), header, length).unwrap_err().to_string()
    };
    assert!(add(&header, length - 1).contains("cut short or changed"));
    assert!(add(&header[1..], length).contains("damaged"));
    let limited = |size: u64| header_length(path, &size.to_le_bytes(), 1 << 40).unwrap_err().to_string();
    assert!(limited((16 << 20) + 1).contains("save the model in shards"));
    assert!(limited(100_000_001).contains("not a safetensors file"));
    let mut twice = files(&tensors(LANGUAGE));
    let error = twice.add("b.safetensors".into(), &header, length).unwrap_err().to_string();
    assert!(error.contains("also in another shard"), "{error}");
}

#[test]
fn a_header_is_read_whatever_its_order_and_refused_beyond_the_format() {
    let read = |header: &str, data: u64| {
        let mut files = WeightFiles::default();
        let length = 8 + header.len() as u64 + data;
        files.add("a".into(), header.as_bytes(), length).map(|()| files).map_err(|error| error.to_string())
    };
    let tensor = |from: u64, shape: &str, more: &str| {
        format!(r#"{{"data_offsets":[{from},{}],"shape":{shape},"dtype":"U8"{more}}}"#, from + 2)
    };
    let (a, b) = (tensor(2, "[2]", ""), tensor(0, "[1,2]", r#","later":[{"x":1}]"#));
    let files = read(&format!(r#"{{"a":{a},"__metadata__":{{"format":"pt"}},"b":{b}}}"#), 4).unwrap();
    assert_eq!(files.metadata("format"), Some("pt"));
    assert_eq!(
        files.iter().map(|(name, entry)| (name, entry.bytes)).collect::<Vec<_>>(),
        [("a", 2), ("b", 2)]
    );
    assert_eq!(files.get("a").unwrap().start - files.get("b").unwrap().start, 2);

    let error = |header: String| read(&header, 4).unwrap_err();
    assert!(error(format!(r#"{{"b":{b},"b":{a}}}"#)).contains("tensor b is there twice"));
    let long = format!("[{}2]", "1,".repeat(64));
    assert!(error(format!(r#"{{"b":{}}}"#, tensor(0, &long, ""))).contains("a list of at most 64 sizes"));
    assert!(error(format!(r#"{{"a":{a}}}"#)).contains("damaged"), "a gap before the first tensor");
    assert!(error("[]".to_owned()).contains("an object of tensors by name"));
}

#[test]
fn an_index_maps_tensors_to_plain_file_names() {
    let index = Path::new("model.safetensors.index.json");
    let read = |value: Value| shards(index, value.to_string().as_bytes());
    let map = read(json!({ "weight_map": { "lm_head.weight": "model.safetensors" } })).unwrap();
    let files = files(&tensors(LANGUAGE));
    files.require_shards(index, &map).unwrap();
    let other = read(json!({ "weight_map": { "lm_head.weight": "b.safetensors" } })).unwrap();
    assert!(files.require_shards(index, &other).unwrap_err().to_string().contains("lm_head.weight"));
    for file in [json!("../a"), json!(""), json!(3), json!([["b"]])] {
        let error = read(json!({ "metadata": [1], "weight_map": { "a": file } })).unwrap_err().to_string();
        assert!(error.contains("weight_map.a") && error.contains("index.json"), "{error}");
    }
    for index in [json!({}), json!([]), json!({ "weight_map": ["a"] })] {
        let error = read(index).unwrap_err().to_string();
        assert!(error.contains("it is not an index of shards") && !error.contains("JSON: "), "{error}");
    }
}
