{{/*
What the operator may do where it keeps ZeroCaches: the verbs it uses and no others. Server-side apply is `patch`, and `create` for what
is not there yet.
*/}}
{{- define "zero-cache-operator.rules" -}}
# The resource. It is patched for its finalizer only.
- apiGroups: [zerocache.dev]
  resources: [zerocaches]
  verbs: [get, list, watch, patch]
- apiGroups: [zerocache.dev]
  resources: [zerocaches/status]
  verbs: [patch]
# Where the API server checks owner references that block deletion.
- apiGroups: [zerocache.dev]
  resources: [zerocaches/finalizers]
  verbs: [update]
# Children.
- apiGroups: [apps]
  resources: [statefulsets, deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# Volumes grow by their claims.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, patch, delete]
# A pod of a broken revision is deleted, for a StatefulSet waits for it for ever.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
# What a clean-up Job said at its end.
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
# Read for hashes and database addresses; created for tokens that the operator makes up once, never changed.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
