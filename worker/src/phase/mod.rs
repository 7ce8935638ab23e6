//! What a rank does in each phase, told as a story.
