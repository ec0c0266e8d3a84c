{{/* Name of all objects. */}}
{{- define "zero-cache-operator.name" -}}
{{- default (ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name)) .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of the pods that never change. NetworkPolicies of ZeroCaches let pods in by the name, so it is the same in every release. */}}
{{- define "zero-cache-operator.selector" -}}
app.kubernetes.io/name: zero-cache-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "zero-cache-operator.labels" -}}
{{ include "zero-cache-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: zero-cache
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "zero-cache-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "zero-cache-operator.name" .) .Values.serviceAccount.name }}
{{- else -}}
{{ required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "zero-cache-operator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* The ServiceAccount as the subject of a binding. */}}
{{- define "zero-cache-operator.subject" -}}
- kind: ServiceAccount
  name: {{ include "zero-cache-operator.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* Name of the Lease: two releases in one namespace have each their own. That of the usual name is older than names were. */}}
{{- define "zero-cache-operator.lease" -}}
{{- $name := include "zero-cache-operator.name" . -}}
{{- ternary "zerocache-operator" $name (eq $name .Chart.Name) -}}
{{- end -}}
