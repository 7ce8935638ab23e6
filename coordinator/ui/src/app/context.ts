// The source of data, for all components.
import { createContext } from "preact";
import { useContext } from "preact/hooks";
import type { Source } from "../source/source.js";

export const SourceContext = createContext<Source | undefined>(undefined);

export function useSource(): Source {
  const source = useContext(SourceContext);
  if (!source) throw new Error("no source of data");
  return source;
}
