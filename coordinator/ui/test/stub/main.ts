// Serves synthetic jobs for manual inspection: node .test/stub.mjs [PORT].
import { serve } from "./grpcWeb.js";
import { gallery } from "./scenes.js";

const world = gallery();
const { url } = await serve(world.methods(), { dist: ".test/dist", ready: () => world.ready }, Number(process.argv[2] ?? 0));
console.log(url);
