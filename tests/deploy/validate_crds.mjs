// Which custom resources, of a JSON list on standard input, do not fit their definitions?
import { pathToFileURL } from "node:url";
const PACKAGES = {
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "cert-manager.io": "@kubernetes-models/cert-manager",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
};
let text = "";
for await (const part of process.stdin) text += part;
for (const manifest of JSON.parse(text)) {
  const [group, version] = manifest.apiVersion.split("/");
  const path = `${process.argv[2]}/node_modules/${PACKAGES[group]}/${group}/${version}`;
  const found = await import(pathToFileURL(`${path}/${manifest.kind}.js`));
  const Model = found[manifest.kind] ?? found.default[manifest.kind];
  try {
    new Model(manifest).validate();
  } catch (error) {
    console.log(`${manifest.kind} ${manifest.metadata.name}: ${error.message}`);
  }
}
