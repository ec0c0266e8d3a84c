#!/usr/bin/env python3
"""Stand-in NetworkPolicy enforcer: renders the policies of all namespaces to one nftables table, twice per second.

Runs inside `cluster`. It filters what the node forwards (pod to pod, pod to Service, after address translation) and what
pods send to the node itself; what the node sends to its pods (probes, test clients) always passes, as Kubernetes wants it.
Understood: podSelector, namespaceSelector, ipBlock, ports with number, name, endPort and protocol; ingress and egress.
"""
import subprocess, sys, time
from apiserver import ApiServer

LISTS = ("/api/v1/pods", "/api/v1/namespaces", "/apis/networking.k8s.io/v1/networkpolicies")

def matches(selector, labels):
    if selector is None:
        return False
    for k, v in (selector.get("matchLabels") or {}).items():
        if labels.get(k) != v:
            return False
    for e in selector.get("matchExpressions") or []:
        has, val = e["key"] in labels, labels.get(e["key"])
        ok = {"In": has and val in e.get("values", []), "NotIn": not has or val not in e.get("values", []),
              "Exists": has, "DoesNotExist": not has}[e["operator"]]
        if not ok:
            return False
    return True

def port_matches(ports, dest_pod):
    """nft expressions for a rule's ports; [""] when every port is meant."""
    if not ports:
        return [""]
    out = []
    for p in ports:
        proto, port = p.get("protocol", "TCP").lower(), p.get("port")
        if isinstance(port, str):                                   # a named port: ask the pod that is the target
            port = next((c["containerPort"] for ctr in (dest_pod or {}).get("spec", {}).get("containers", [])
                         for c in ctr.get("ports", []) if c.get("name") == port), None)
            if port is None:
                continue
        out.append(f"meta l4proto {proto}" if port is None else
                   f"{proto} dport {port}-{p['endPort']}" if p.get("endPort") else f"{proto} dport {port}")
    return out

def render(pods, namespaces, policies):
    ns_labels = {n["metadata"]["name"]: n["metadata"].get("labels", {}) for n in namespaces}
    pods = [p for p in pods if p.get("status", {}).get("podIP") and not p["spec"].get("hostNetwork")
            and p["status"].get("phase") in ("Pending", "Running")]
    labels = lambda p: p["metadata"].get("labels", {})
    ip = lambda p: p["status"]["podIP"]

    def peer_sets(peers, own_ns, side):
        if not peers:
            return [""]
        out = []
        for peer in peers:
            if "ipBlock" in peer:
                e = f"ip {side} {peer['ipBlock']['cidr']}"
                if peer["ipBlock"].get("except"):
                    e += f" ip {side} != {{ {', '.join(peer['ipBlock']['except'])} }}"
                out.append(e)
                continue
            found = [ip(q) for q in pods
                     if (matches(peer["namespaceSelector"], ns_labels.get(q["metadata"]["namespace"], {}))
                         if "namespaceSelector" in peer else q["metadata"]["namespace"] == own_ns)
                     and ("podSelector" not in peer or matches(peer["podSelector"], labels(q)))]
            if found:
                out.append(f"ip {side} {{ {', '.join(sorted(found))} }}")
        return out

    chains, heads = [], {"ingress": [], "egress": []}
    for pod in pods:
        mine = [p for p in policies if p["metadata"]["namespace"] == pod["metadata"]["namespace"]
                and matches(p["spec"]["podSelector"], labels(pod))]
        for direction, own, other, key in (("ingress", "daddr", "saddr", "from"), ("egress", "saddr", "daddr", "to")):
            kind = direction.capitalize()
            chosen = [p for p in mine if kind in p["spec"].get("policyTypes", ["Ingress"])]
            if not chosen:
                continue
            name = f"{direction}_{ip(pod).replace('.', '_')}"
            lines = []
            for pol in chosen:
                for rule in pol["spec"].get(direction) or []:
                    for a in peer_sets(rule.get(key), pol["metadata"]["namespace"], other):
                        for b in port_matches(rule.get("ports"), pod if direction == "ingress" else None):
                            lines.append(f"    {a} {b} return")
            heads[direction].append(f"    ip {own} {ip(pod)} goto {name}")
            chains.append("\n".join([f"  chain {name} {{", *lines, "    counter drop", "  }"]))
    return "\n".join([
        "table inet e2e_netpol", "delete table inet e2e_netpol", "table inet e2e_netpol {", *chains,
        "  chain ingress {", *heads["ingress"], "  }", "  chain egress {", *heads["egress"], "  }",
        "  chain forward { type filter hook forward priority -10; ct state established,related accept; jump egress; jump ingress; }",
        '  chain input { type filter hook input priority -10; iifname != "cni0" accept; ct state established,related accept; jump egress; }',
        "}", ""])

def main():
    api, last = ApiServer(), None
    while True:
        lists = [api.list(path) for path in LISTS]
        if None not in lists:
            text = render(*lists)
            if text != last:
                done = subprocess.run(["nft", "-f", "-"], input=text, capture_output=True, text=True)
                if done.returncode == 0:
                    last = text
                else:
                    print(done.stderr, text, file=sys.stderr, flush=True)
        time.sleep(0.5)

main()
