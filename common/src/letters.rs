//! The letters game: its data and its gold reward.
