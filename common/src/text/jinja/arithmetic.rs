//! Arithmetic on values, as Python does it.

use super::Error;
use super::ast::Operator;
use super::number::{Number, overflow};
use super::value::Value;

/// An integer; `True` is one too.
pub(super) fn integer(value: &Value) -> Option<i128> {
    match value.number()? {
        Number::Int(value) => Some(value),
        Number::Float(_) => None,
    }
}

pub(super) fn float(value: &Value) -> Option<f64> {
    Some(match value.number()? {
        Number::Int(value) => value as f64,
        Number::Float(value) => value,
    })
}

/// Arithmetic on two numbers; `None` if one is not a number.
pub(super) fn binary(operator: Operator, left: &Value, right: &Value) -> Option<Result<Value, Error>> {
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => Some(integers(operator, left, right)),
        _ => Some(floats(operator, float(left)?, float(right)?)),
    }
}

fn integers(operator: Operator, left: i128, right: i128) -> Result<Value, Error> {
    if right == 0 && matches!(operator, Operator::Div | Operator::FloorDiv | Operator::Mod) {
        return Err(Error::new(match operator {
            Operator::Div => "division by zero",
            _ => "integer division or modulo by zero",
        }));
    }
    let value = match operator {
        Operator::Add => left.checked_add(right),
        Operator::Sub => left.checked_sub(right),
        Operator::Mul => left.checked_mul(right),
        Operator::Div => {
            // The quotient is rounded once, from exact integers.
            let exact = 1i128 << 53;
            return match left.abs() <= exact && right.abs() <= exact {
                true => Ok(Value::Float(left as f64 / right as f64)),
                false => Err(Error::unsupported("division of integers beyond 2^53")),
            };
        }
        Operator::FloorDiv => left.checked_div_euclid(right).map(|_| {
            let quotient = left / right;
            if left % right != 0 && (left < 0) != (right < 0) { quotient - 1 } else { quotient }
        }),
        Operator::Mod => left
            .checked_rem(right)
            .map(|rest| if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest }),
        Operator::Pow if right < 0 => {
            if left == 0 {
                return Err(Error::new("0.0 cannot be raised to a negative power"));
            }
            return Ok(Value::Float((left as f64).powf(right as f64)));
        }
        Operator::Pow => u32::try_from(right).ok().and_then(|power| left.checked_pow(power)),
    };
    value.map(Value::Int).ok_or_else(overflow)
}

fn floats(operator: Operator, left: f64, right: f64) -> Result<Value, Error> {
    let divides = matches!(operator, Operator::Div | Operator::FloorDiv | Operator::Mod);
    if divides && right == 0.0 {
        return Err(Error::new("float division by zero"));
    }
    Ok(Value::Float(match operator {
        Operator::Add => left + right,
        Operator::Sub => left - right,
        Operator::Mul => left * right,
        Operator::Div => left / right,
        Operator::FloorDiv => divmod(left, right).0,
        Operator::Mod => divmod(left, right).1,
        Operator::Pow => {
            if left == 0.0 && right < 0.0 {
                return Err(Error::new("0.0 cannot be raised to a negative power"));
            }
            if left < 0.0 && right.fract() != 0.0 {
                return Err(Error::unsupported("a complex number"));
            }
            let power = left.powf(right);
            if power.is_infinite() && left.is_finite() && right.is_finite() {
                return Err(Error::new("Numerical result out of range"));
            }
            power
        }
    }))
}

/// Like CPython's `float_divmod`.
fn divmod(left: f64, right: f64) -> (f64, f64) {
    let mut rest = left % right;
    let mut quotient = (left - rest) / right;
    if rest != 0.0 {
        if (right < 0.0) != (rest < 0.0) {
            rest += right;
            quotient -= 1.0;
        }
    } else {
        rest = 0f64.copysign(right);
    }
    let floored = if quotient != 0.0 {
        let floored = quotient.floor();
        if quotient - floored > 0.5 { floored + 1.0 } else { floored }
    } else {
        0f64.copysign(left / right)
    };
    (floored, rest)
}

pub(super) fn negative(value: &Value) -> Option<Result<Value, Error>> {
    match value {
        Value::Float(value) => Some(Ok(Value::Float(-value))),
        _ => integer(value).map(|value| value.checked_neg().map(Value::Int).ok_or_else(overflow)),
    }
}

pub(super) fn absolute(value: &Value) -> Option<Result<Value, Error>> {
    match value {
        Value::Float(value) => Some(Ok(Value::Float(value.abs()))),
        _ => integer(value).map(|value| value.checked_abs().map(Value::Int).ok_or_else(overflow)),
    }
}
