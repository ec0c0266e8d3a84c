#!/usr/bin/env python3
"""Stand-in ingress controller: renders Ingress objects with cookie affinity to a HAProxy configuration and reloads it.

Runs inside `cluster`. It asks twice per second (tests only), listens on NODE_IP:80 and ends with the cluster.
Understood: host and path prefix rules, and of haproxy-ingress' and ingress-nginx' dialects the annotations for affinity and the
cookie's name. Reports the address in each Ingress' status.
"""
import subprocess, time
from apiserver import IP, W, ApiServer

CONFIG, SOCKET = f"{W}/haproxy.cfg", f"{W}/haproxy.sock"
DIALECTS = ("haproxy-ingress.github.io", "nginx.ingress.kubernetes.io")
NETWORKING, DISCOVERY = "/apis/networking.k8s.io/v1", "/apis/discovery.k8s.io/v1"

def annotation(ingress, name, default=None):
    annotations = ingress["metadata"].get("annotations", {})
    return next((annotations[f"{dialect}/{name}"] for dialect in DIALECTS if f"{dialect}/{name}" in annotations), default)

def servers(namespace, service, port, slices):
    """One line for each pod that is ready: a stopping pod keeps its open sockets in the process before."""
    for one in slices:
        meta = one["metadata"]
        if meta["namespace"] != namespace or meta["labels"].get("kubernetes.io/service-name") != service:
            continue
        ports = [p for p in one["ports"] or [] if p.get("name") == port or len(one["ports"]) == 1]
        for endpoint in one.get("endpoints") or []:
            if ports and endpoint["conditions"].get("ready"):
                pod = endpoint["targetRef"]["name"]
                yield f"  server {pod} {endpoint['addresses'][0]}:{ports[0]['port']} cookie {pod} check inter 1s"

def render(ingresses, slices):
    front, back = [], {}
    for ingress in sorted(ingresses, key=lambda i: (i["metadata"]["namespace"], i["metadata"]["name"])):
        namespace = ingress["metadata"]["namespace"]
        for rule in ingress["spec"].get("rules", []):
            for path in sorted(rule["http"]["paths"], key=lambda p: -len(p.get("path", "/"))):
                service = path["backend"]["service"]
                port = service["port"].get("name") or str(service["port"]["number"])
                name = f"{namespace}_{ingress['metadata']['name']}_{service['name']}_{port}"
                host = f"{{ req.hdr(host),field(1,:) -i {rule['host']} }} " if rule.get("host") else ""
                front.append(f"  use_backend {name} if {host}{{ path_beg {path.get('path', '/')} }}")
                lines = [f"backend {name}", "  balance leastconn"]
                if annotation(ingress, "affinity") == "cookie":
                    cookie = annotation(ingress, "session-cookie-name", "INGRESSCOOKIE")
                    lines.append(f"  cookie {cookie} insert indirect nocache httponly attr SameSite=Lax")
                back[name] = lines + list(servers(namespace, service["name"], port, slices))
    return "\n".join([
        "global", f"  stats socket {SOCKET} mode 600 level admin expose-fd listeners", "  hard-stop-after 30m",
        "defaults", "  mode http", "  timeout connect 2s", "  timeout client 30s", "  timeout server 30s", "  timeout tunnel 1h",
        "  option redispatch 1", "  retries 3",
        "frontend web", f"  bind {IP}:80", *front, *(line for lines in back.values() for line in lines), ""])

def report(api, ingress):
    meta, address = ingress["metadata"], {"loadBalancer": {"ingress": [{"ip": IP}]}}
    if ingress.get("status", {}).get("loadBalancer", {}).get("ingress") != address["loadBalancer"]["ingress"]:
        api.merge(f"{NETWORKING}/namespaces/{meta['namespace']}/ingresses/{meta['name']}/status", {"status": address})

def main():
    api, processes, last = ApiServer(), [], None
    while True:
        ingresses, slices = api.list(f"{NETWORKING}/ingresses"), api.list(f"{DISCOVERY}/endpointslices")
        if ingresses is not None and slices is not None:
            text = render(ingresses, slices)
            if text != last:
                with open(CONFIG, "w") as file:
                    file.write(text)
                # The process before ends when its last connection does.
                old = ["-sf", str(processes[-1].pid), "-x", SOCKET] if processes else []
                processes.append(subprocess.Popen(["haproxy", "-db", "-f", CONFIG, *old]))
                last = text
            for ingress in ingresses:
                report(api, ingress)
        processes = [p for p in processes[:-1] if p.poll() is None] + processes[-1:]
        time.sleep(0.5)

main()
