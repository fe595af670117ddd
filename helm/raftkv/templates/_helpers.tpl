{{/* Names. A StatefulSet's name ends up in labels with a hash behind it: 52 characters leave room. */}}
{{- define "raftkv.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "raftkv.headless" -}}{{ include "raftkv.fullname" . }}-peers{{- end -}}

{{- define "raftkv.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "raftkv.nodeSelector" -}}
{{ include "raftkv.selector" . }}
app.kubernetes.io/component: node
{{- end -}}

{{- define "raftkv.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "raftkv.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | trunc 63 | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "raftkv.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "raftkv.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "raftkv.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* Where things are. ".svc" without the cluster's domain: the pods' search list has it, whatever it is. */}}
{{- define "raftkv.scheme" -}}{{ ternary "https" "http" .Values.tls.enabled }}{{- end -}}

{{- define "raftkv.url" -}}
{{ include "raftkv.scheme" . }}://{{ include "raftkv.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}
{{- end -}}

{{/* A member by its ordinal: NAME=PEER,URL. Call with (dict "root" $ "ordinal" N). */}}
{{- define "raftkv.member" -}}
{{- $pod := printf "%s-%d" (include "raftkv.fullname" .root) (int .ordinal) -}}
{{- $host := printf "%s.%s.%s.svc" $pod (include "raftkv.headless" .root) .root.Release.Namespace -}}
{{- printf "%s=%s:8401,%s://%s:8400" $pod $host (include "raftkv.scheme" .root) $host -}}
{{- end -}}

{{/* Secrets, and what the pods find of them under /etc/raftkv. */}}
{{- define "raftkv.clusterSecret" -}}
{{ .Values.clusterSecret.existingSecret | default (include "raftkv.fullname" .) }}
{{- end -}}

{{- define "raftkv.authSecret" -}}
{{ .Values.auth.existingSecret | default (printf "%s-admin-token" (include "raftkv.fullname" .)) }}
{{- end -}}

{{- define "raftkv.tlsSecret" -}}
{{ .Values.tls.existingSecret | default (printf "%s-tls" (include "raftkv.fullname" .)) }}
{{- end -}}

{{- define "raftkv.peerTlsSecret" -}}
{{ .Values.peerTls.existingSecret | default (printf "%s-peer-tls" (include "raftkv.fullname" .)) }}
{{- end -}}

{{/* An object as it is there now, as JSON; {} where there is none, and where Helm does not look (helm template, a
dry run). Call with (dict "root" $ "version" V "kind" K "name" N). */}}
{{- define "raftkv.there" -}}
{{- toJson (lookup .version .kind .root.Release.Namespace .name) -}}
{{- end -}}

{{/* How many replicas there are now; nothing where that is not known. */}}
{{- define "raftkv.replicasNow" -}}
{{- $name := include "raftkv.fullname" . -}}
{{- $there := include "raftkv.there" (dict "root" . "version" "apps/v1" "kind" "StatefulSet" "name" $name) | fromJson -}}
{{- if $there -}}{{ int $there.spec.replicas }}{{- end -}}
{{- end -}}

{{/* The data of a Secret that is to be made once, if it was made. Call with (dict "root" $ "name" SECRET). */}}
{{- define "raftkv.kept" -}}
{{- $there := include "raftkv.there" (dict "root" .root "version" "v1" "kind" "Secret" "name" .name) | fromJson -}}
{{- toJson ($there.data | default dict) -}}
{{- end -}}

{{/* The settings of a node, as TOML, but for the members: these change with the number of replicas, which must
not restart the pods that stay. Every value is text; raftkv parses it as it does a flag's. */}}
{{- define "raftkv.settings" -}}
route = "forward"
drain_seconds = "{{ .Values.leaveSeconds }}s"
rejoin = true
secret_file = "/etc/raftkv/cluster-secret"
{{- if .Values.auth.enabled }}
auth = "tokens"
bootstrap_token_file = "/etc/raftkv/admin-token"
{{- end }}
{{- if .Values.tls.enabled }}
tls_cert = "/etc/raftkv/tls/tls.crt"
tls_key = "/etc/raftkv/tls/tls.key"
tls_ca = "/etc/raftkv/tls/ca.crt"
{{- if .Values.tls.clientCertificates }}
tls_client_ca = "/etc/raftkv/tls/ca.crt"
{{- end }}
{{- end }}
{{- if .Values.peerTls.enabled }}
peer_tls_cert = "/etc/raftkv/peer-tls/tls.crt"
peer_tls_key = "/etc/raftkv/peer-tls/tls.key"
peer_tls_ca = "/etc/raftkv/peer-tls/ca.crt"
{{- end }}
{{- if .Values.snapshots.url }}
snapshots = {{ .Values.snapshots.url | quote }}
{{- end }}
{{- if .Values.snapshots.ceph.existingSecret }}
ceph_conf = "/etc/raftkv/ceph/ceph.conf"
ceph_keyring = "/etc/raftkv/ceph/keyring"
ceph_user = {{ .Values.snapshots.ceph.user | quote }}
{{- end }}
{{- range $name, $value := .Values.config }}
{{ $name }} = {{ include "raftkv.text" $value | quote }}
{{- end }}
{{- end -}}

{{/* A number from values.yaml is a float, and prints as 1e+06. */}}
{{- define "raftkv.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{- define "raftkv.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "raftkv.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What a client in a pod of the chart needs: where the cluster is, and how to show who it is. */}}
{{- define "raftkv.clientEnv" -}}
{{- if .Values.auth.enabled }}
- name: RAFTKV_TOKEN_FILE
  value: /etc/raftkv/admin-token
{{- end }}
{{- if .Values.tls.enabled }}
- name: RAFTKV_CA_FILE
  value: /etc/raftkv/tls/ca.crt
{{- if .Values.tls.clientCertificates }}
- name: RAFTKV_CERT_FILE
  value: /etc/raftkv/tls/tls.crt
- name: RAFTKV_KEY_FILE
  value: /etc/raftkv/tls/tls.key
{{- end }}
{{- end }}
{{- end -}}

{{/* Sources of a projected volume. Call with (dict "root" $), and "optional" for a job that runs before an
upgrade makes what it turns on. */}}
{{- define "raftkv.clientFiles" -}}
{{- $values := .root.Values -}}
{{- if $values.auth.enabled }}
- secret:
    name: {{ include "raftkv.authSecret" .root }}
    items: [{key: {{ $values.auth.key }}, path: admin-token}]
    {{- if .optional }}
    optional: true
    {{- end }}
{{- end }}
{{- if $values.tls.enabled }}
- secret:
    name: {{ include "raftkv.tlsSecret" .root }}
    items:
      - {key: tls.crt, path: tls/tls.crt}
      - {key: tls.key, path: tls/tls.key}
      - {key: ca.crt, path: tls/ca.crt}
    {{- if .optional }}
    optional: true
    {{- end }}
{{- end }}
{{- end -}}

{{/* Where pods of any kind may run. */}}
{{- define "raftkv.podPlacement" -}}
serviceAccountName: {{ include "raftkv.serviceAccount" . }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A command that asks and ends: Python and an HTTP client. */}}
{{- define "raftkv.commandResources" -}}
requests:
  cpu: 50m
  memory: 64Mi
limits:
  memory: 256Mi
{{- end -}}
