{{/*
What the operator may do where it keeps ZeroCaches: the verbs it uses and no others. Server-side apply is `patch`, and `create` for what
is not there yet; what it reads it lists and watches. Kinds that are made for every ZeroCache go with their owner and are never deleted by it.
*/}}
{{- define "zero-cache-operator.rules" -}}
# The resource. It is patched for its finalizer only.
- apiGroups: [zerocache.dev]
  resources: [zerocaches]
  verbs: [list, watch, patch]
- apiGroups: [zerocache.dev]
  resources: [zerocaches/status]
  verbs: [patch]
# Made for every ZeroCache.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch]
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch, create, patch]
# Made when asked for, and deleted when not any longer.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies, ingresses]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [list, watch, create, patch, delete]
# Deleted, without its pod, and made anew to let its volume grow.
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [list, watch, create, patch, delete]
# Volumes grow by their claims.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, watch, patch]
# A pod of a broken revision is deleted, for its StatefulSet would wait for it for ever.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
# They delete the backups of old generations, and go by themselves.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch]
# Read, those that ZeroCaches refer to, for hashes and for the addresses of databases; created for tokens that are made up once.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create]
# Whether a ZeroCache is deleted together with everything around it.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
