//! Filters of lists, dicts and everything else that can be iterated over.

use super::Error;
use super::arithmetic::integer;
use super::ast::Operator;
use super::eval::Machine;
use super::functions::{Call, not_integer, required};
use super::sort::merge_sort;
use super::value::Value;
use std::cmp::Ordering;

impl Machine {
    pub(super) fn sequence_filter(&self, name: &str, value: &Value, call: Call) -> Result<Value, Error> {
        match name {
            "list" => {
                call.bind(name, [])?;
                self.list(self.items(value)?)
            }
            "items" => {
                call.bind(name, [])?;
                self.items_filter(value)
            }
            "first" | "last" => self.end_of(name, value, call),
            "reverse" => self.reversed(value, call),
            "join" => self.join(value, call),
            "sum" => self.sum(value, call),
            "min" | "max" => self.extreme(name, value, call),
            "sort" => {
                let [reverse, case, attribute] =
                    call.bind(name, ["reverse", "case_sensitive", "attribute"])?;
                let reverse = reverse.is_some_and(|reverse| reverse.truth());
                let keys = SortKey::of(case, attribute)?;
                self.list(self.sorted(self.items(value)?, &keys, reverse)?)
            }
            "unique" => {
                let [case, attribute] = call.bind(name, ["case_sensitive", "attribute"])?;
                let keys = SortKey::of(case, attribute)?;
                let (mut seen, mut kept): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
                for item in self.items(value)? {
                    let key = self.key(&item, &keys)?;
                    key.check_hashable()?;
                    self.budget.steps(seen.len())?;
                    if !seen.iter().any(|known| known.equals(&key)) {
                        seen.push(key);
                        kept.push(item);
                    }
                }
                self.stream(kept)
            }
            "dictsort" => self.dict_sort(value, call),
            "groupby" => self.group(value, call),
            "batch" | "slice" => self.chunks(name, value, call),
            "map" => self.map(value, call),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, value, call),
            // The parser accepted it, since it is in a branch.
            _ => super::filters::check(name).and(Err(Error::unsupported(format!("the filter {name}")))),
        }
    }

    fn end_of(&self, name: &str, value: &Value, call: Call) -> Result<Value, Error> {
        call.bind(name, [])?;
        if let Value::Stream(stream) = value {
            if name == "last" {
                return Err(Error::new("'generator' object is not reversible"));
            }
            let read = stream.read.get();
            let first = stream.items.values.get(read).cloned();
            stream.read.set((read + 1).min(stream.items.values.len()));
            return Ok(first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty.")));
        }
        let items = self.items(value)?;
        let found = if name == "first" { items.first() } else { items.last() };
        Ok(found.cloned().unwrap_or_else(|| Value::undefined(format!("No {name} item, sequence was empty."))))
    }

    fn reversed(&self, value: &Value, call: Call) -> Result<Value, Error> {
        call.bind("reverse", [])?;
        if let Value::Str(text) = value {
            return self.string(text.chars().rev().collect::<String>());
        }
        let mut items = self.items(value)?;
        items.reverse();
        // Values that Python cannot reverse become lists.
        if matches!(value, Value::Stream(_)) { self.list(items) } else { self.stream(items) }
    }

    fn join(&self, value: &Value, call: Call) -> Result<Value, Error> {
        let [separator, attribute] = call.bind("join", ["d", "attribute"])?;
        let separator = separator.map_or(Ok(String::new()), |separator| self.text(&separator))?;
        let mut parts = Vec::new();
        for item in self.items(value)? {
            let item = match &attribute {
                None | Some(Value::None) => item,
                Some(attribute) => self.dotted_item(&item, attribute, None)?,
            };
            let part = self.text(&item)?;
            self.budget.bytes(part.len())?;
            parts.push(part);
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.joined(&separator, &parts)
    }

    fn sum(&self, value: &Value, call: Call) -> Result<Value, Error> {
        let [attribute, start] = call.bind("sum", ["attribute", "start"])?;
        let mut sum = start.unwrap_or(Value::Int(0));
        if matches!(sum, Value::Str(_)) {
            return Err(Error::new("sum() can't sum strings"));
        }
        for item in self.items(value)? {
            let item = match &attribute {
                None | Some(Value::None) => item,
                Some(attribute) => self.dotted_item(&item, attribute, None)?,
            };
            sum = self.binary(Operator::Add, &sum, &item)?;
        }
        Ok(sum)
    }

    fn extreme(&self, name: &str, value: &Value, call: Call) -> Result<Value, Error> {
        let [case, attribute] = call.bind(name, ["case_sensitive", "attribute"])?;
        let keys = SortKey::of(case, attribute)?;
        let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
        let mut best: Option<(Value, Value)> = None;
        for item in self.items(value)? {
            let key = self.key(&item, &keys)?;
            let better = match &best {
                None => true,
                Some((known, _)) => key.order(known, if name == "min" { "<" } else { ">" })? == Some(wanted),
            };
            if better {
                best = Some((key, item));
            }
        }
        Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
    }

    fn sorted(&self, items: Vec<Value>, keys: &SortKey, reverse: bool) -> Result<Vec<Value>, Error> {
        let mut keyed = Vec::with_capacity(items.len());
        for item in items {
            keyed.push((self.key(&item, keys)?, item));
        }
        self.sort(&mut keyed, reverse)?;
        Ok(keyed.into_iter().map(|(_, item)| item).collect())
    }

    fn sort(&self, keyed: &mut Vec<(Value, Value)>, reverse: bool) -> Result<(), Error> {
        merge_sort(keyed, |(a, _), (b, _)| {
            self.budget.steps(a.parts().min(b.parts()))?;
            if reverse { b.order(a, "<") } else { a.order(b, "<") }
        })
    }

    /// The sort key of an item.
    fn key(&self, item: &Value, keys: &SortKey) -> Result<Value, Error> {
        let fold = |value: Value| match value {
            Value::Str(text) if !keys.case_sensitive => self.string(text.to_lowercase()),
            value => Ok(value),
        };
        match &keys.attributes[..] {
            [] => fold(item.clone()),
            [one] => fold(self.dotted_item(item, one, None)?),
            several => {
                let parts: Result<Vec<Value>, Error> =
                    several.iter().map(|one| fold(self.dotted_item(item, one, None)?)).collect();
                self.list(parts?)
            }
        }
    }

    fn dict_sort(&self, value: &Value, call: Call) -> Result<Value, Error> {
        let [case, by, reverse] = call.bind("dictsort", ["case_sensitive", "by", "reverse"])?;
        let Value::Dict(dict) = value else {
            return Err(Error::new(format!("dictsort takes a dict, not {}", value.type_name())));
        };
        let by = by.map_or(Ok("key".to_owned()), |by| self.text(&by))?;
        let keys = SortKey::of(case, None)?;
        let mut keyed = Vec::new();
        for (key, value) in dict.entries() {
            let sorted_by = match by.as_str() {
                "key" => key,
                "value" => value,
                _ => return Err(Error::new("You can only sort by either \"key\" or \"value\"")),
            };
            keyed.push((self.key(sorted_by, &keys)?, self.tuple(vec![key.clone(), value.clone()])?));
        }
        self.sort(&mut keyed, reverse.is_some_and(|reverse| reverse.truth()))?;
        self.list(keyed.into_iter().map(|(_, pair)| pair).collect())
    }

    fn group(&self, value: &Value, call: Call) -> Result<Value, Error> {
        let [attribute, default, case] = call.bind("groupby", ["attribute", "default", "case_sensitive"])?;
        let [attribute] = required([attribute], "groupby")?;
        let folds = !case.is_some_and(|case| case.truth());
        let mut keyed = Vec::new();
        for item in self.items(value)? {
            let own = self.dotted_item(&item, &attribute, default.as_ref())?;
            let key = match &own {
                Value::Str(text) if folds => self.string(text.to_lowercase())?,
                _ => own.clone(),
            };
            keyed.push((key, self.tuple(vec![own, item])?));
        }
        self.sort(&mut keyed, false)?;
        let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
        for (key, pair) in keyed {
            let Value::Tuple(pair) = pair else { continue };
            let [own, item] = &pair.values[..] else { continue };
            match groups.last_mut() {
                Some((known, _, items)) if known.equals(&key) => items.push(item.clone()),
                _ => groups.push((key, own.clone(), vec![item.clone()])),
            }
        }
        let groups: Result<Vec<Value>, Error> =
            groups.into_iter().map(|(_, own, items)| self.tuple(vec![own, self.list(items)?])).collect();
        self.list(groups?)
    }

    fn chunks(&self, name: &str, value: &Value, call: Call) -> Result<Value, Error> {
        let [count, fill] = match name {
            "batch" => call.bind(name, ["linecount", "fill_with"])?,
            _ => call.bind(name, ["slices", "fill_with"])?,
        };
        let [count] = required([count], name)?;
        let number = integer(&count).ok_or_else(|| not_integer(&count))?;
        let count = usize::try_from(number).ok().filter(|count| *count > 0);
        let count = count.ok_or_else(|| Error::unsupported(format!("{name} with {number}")))?;
        let fill = fill.filter(|fill| !matches!(fill, Value::None));
        let items = self.items(value)?;
        let mut chunks = Vec::new();
        if name == "batch" {
            for chunk in items.chunks(count) {
                let mut chunk = chunk.to_vec();
                if let Some(fill) = &fill {
                    self.room_for(count)?;
                    chunk.resize(count, fill.clone());
                }
                chunks.push(self.list(chunk)?);
            }
        } else {
            self.room_for(count)?;
            let (each, longer) = (items.len() / count, items.len() % count);
            let mut rest = &items[..];
            for index in 0..count {
                let (chunk, behind) = rest.split_at(each + usize::from(index < longer));
                rest = behind;
                let mut chunk = chunk.to_vec();
                if let Some(fill) = fill.as_ref().filter(|_| index >= longer) {
                    chunk.push(fill.clone());
                }
                chunks.push(self.list(chunk)?);
            }
        }
        self.stream(chunks)
    }

    fn map(&self, value: &Value, mut call: Call) -> Result<Value, Error> {
        // For a false value, Jinja2 does not look at the arguments.
        if !value.truth() {
            return self.stream(Vec::new());
        }
        let mut mapped = Vec::new();
        if call.positional.is_empty() {
            let [attribute, default] = call.bind("map", ["attribute", "default"])?;
            let [attribute] = required([attribute], "map")?;
            for item in self.items(value)? {
                mapped.push(self.dotted_item(&item, &attribute, default.as_ref())?);
            }
            return self.stream(mapped);
        }
        let Value::Str(name) = call.positional.remove(0) else {
            return Err(Error::new("map takes a filter's name"));
        };
        super::filters::check(&name)?;
        for item in self.items(value)? {
            let call = Call { positional: call.positional.clone(), named: call.named.clone() };
            mapped.push(self.budget.deeper(|| self.filter(&name, item, call))?);
        }
        self.stream(mapped)
    }

    fn select(&self, name: &str, value: &Value, mut call: Call) -> Result<Value, Error> {
        if !value.truth() {
            return self.stream(Vec::new());
        }
        let wanted = name.starts_with("select");
        let attribute = match name.ends_with("attr") {
            true if call.positional.is_empty() => {
                return Err(Error::new("Missing parameter for attribute name"));
            }
            true => Some(call.positional.remove(0)),
            false => None,
        };
        let test = match call.positional.is_empty() {
            true => None,
            false => Some(self.text(&call.positional.remove(0))?),
        };
        if let Some(test) = &test {
            super::predicates::check(test)?;
        }
        let mut kept = Vec::new();
        for item in self.items(value)? {
            let subject = match &attribute {
                Some(attribute) => self.dotted_item(&item, attribute, None)?,
                None => item.clone(),
            };
            let call = Call { positional: call.positional.clone(), named: call.named.clone() };
            let holds = match &test {
                Some(test) => self.budget.deeper(|| self.test(test, &subject, call))?,
                None => subject.truth(),
            };
            if holds == wanted {
                kept.push(item);
            }
        }
        self.stream(kept)
    }

    /// The item at a path of names and indices separated by dots.
    fn dotted_item(&self, item: &Value, path: &Value, default: Option<&Value>) -> Result<Value, Error> {
        let parts: Vec<Value> = match path {
            Value::Str(path) => path
                .split('.')
                .map(|part| match part.parse::<u32>() {
                    Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index.into()),
                    _ => Value::str(part),
                })
                .collect(),
            other => vec![other.clone()],
        };
        let mut value = item.clone();
        for part in parts {
            value = self.item(&value, &part)?;
            if let (Value::Undefined(_), Some(default)) = (&value, default) {
                value = default.clone();
            }
        }
        Ok(value)
    }
}

/// The comparison of items.
struct SortKey {
    case_sensitive: bool,
    attributes: Vec<Value>,
}

impl SortKey {
    fn of(case_sensitive: Option<Value>, attribute: Option<Value>) -> Result<Self, Error> {
        let attributes = match attribute {
            None | Some(Value::None) => Vec::new(),
            Some(Value::Str(paths)) => paths.split(',').map(Value::str).collect(),
            Some(index) => vec![index],
        };
        Ok(SortKey { case_sensitive: case_sensitive.is_some_and(|case| case.truth()), attributes })
    }
}
