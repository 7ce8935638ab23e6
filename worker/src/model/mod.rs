//! The decoder of the Llama family, its heads, and Hugging Face directories.
