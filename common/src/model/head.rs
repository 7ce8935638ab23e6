//! The head on top of a decoder.

use serde_json::Value;

use super::ModelFilesError;

const CAUSAL: &str = "ForCausalLM";
const CLASSIFIER: &str = "ForSequenceClassification";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// `…ForCausalLM`: a matrix to the vocabulary, own or tied to the embeddings.
    LanguageModel,
    /// `…ForSequenceClassification` with one label: `score.weight`, `[1, hidden]`.
    Reward,
}

impl HeadKind {
    pub fn class_suffix(self) -> &'static str {
        match self {
            Self::LanguageModel => CAUSAL,
            Self::Reward => CLASSIFIER,
        }
    }

    /// The head that `architectures` of a config.json names; without `architectures` it is a language model.
    ///
    /// # Errors
    /// Another class than a language model or a classifier with one label.
    pub fn of_config(config: &Value) -> Result<Self, ModelFilesError> {
        let names = config.get("architectures").and_then(Value::as_array);
        let names: Vec<&str> = names.into_iter().flatten().filter_map(Value::as_str).collect();
        if names.iter().any(|name| name.ends_with(CLASSIFIER)) {
            return require_one_label(config).map(|()| Self::Reward);
        }
        // A bare `…Model` is recognized by its tensor names, which are more specific.
        let known = |name: &&str| name.ends_with(CAUSAL) || name.ends_with("Model");
        match names.iter().find(|name| !known(name) || name.ends_with("RewardModel")) {
            None => Ok(Self::LanguageModel),
            Some(name) => Err(ModelFilesError::Unsupported {
                feature: format!("the class {:?} in architectures", shortened(name)),
                advice: format!("use a …{CAUSAL}, or a …{CLASSIFIER} with one label as a reward model"),
            }),
        }
    }
}

/// A reward model has one label. If neither field states the number of labels, the shape of the head decides.
fn require_one_label(config: &Value) -> Result<(), ModelFilesError> {
    let by_name = config.get("id2label").and_then(Value::as_object).map(|labels| labels.len() as u64);
    let counts = [("num_labels", config.get("num_labels").and_then(Value::as_u64)), ("id2label", by_name)];
    match counts.into_iter().find_map(|(field, count)| Some((field, count.filter(|count| *count != 1)?))) {
        None => Ok(()),
        Some((field, count)) => Err(ModelFilesError::Unsupported {
            feature: format!("a classifier of {count} labels ({field})"),
            advice: "a reward model has one label, whose logit is the reward".to_owned(),
        }),
    }
}

fn shortened(name: &str) -> String {
    name.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn architectures_name_the_head() {
        let head = |config: Value| HeadKind::of_config(&config);
        assert_eq!(head(json!({})), Ok(HeadKind::LanguageModel));
        assert_eq!(head(json!({ "architectures": ["Qwen2ForCausalLM"] })), Ok(HeadKind::LanguageModel));
        assert_eq!(head(json!({ "architectures": ["LlamaModel"] })), Ok(HeadKind::LanguageModel));
        let classifier = |more: Value| {
            let mut config = json!({ "architectures": ["LlamaForSequenceClassification"] });
            for (field, value) in more.as_object().unwrap() {
                config[field] = value.clone();
            }
            config
        };
        assert_eq!(head(classifier(json!({}))), Ok(HeadKind::Reward));
        assert_eq!(head(classifier(json!({ "num_labels": 1 }))), Ok(HeadKind::Reward));
        assert_eq!(head(classifier(json!({ "id2label": { "0": "reward" } }))), Ok(HeadKind::Reward));
    }

    #[test]
    fn other_classes_are_refused_by_name() {
        let refusal = |config: Value| HeadKind::of_config(&config).unwrap_err().to_string();
        let two = json!({ "architectures": ["LlamaForSequenceClassification"], "num_labels": 2 });
        assert!(refusal(two).contains("2 labels (num_labels)"));
        let named = json!({ "architectures": ["LlamaForSequenceClassification"], "id2label": { "0": "a", "1": "b" } });
        assert!(refusal(named).contains("2 labels (id2label)"));
        for class in ["LlamaForTokenClassification", "Qwen2ForRewardModel", "MistralForQuestionAnswering"] {
            assert!(refusal(json!({ "architectures": [class] })).contains(class));
        }
    }
}
