{{- define "tinymlaas.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}{{ $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}{{ end }}
{{- end }}

{{- /* Labels that select pods: (list $ "component"). They never change between versions of the chart. */}}
{{- define "tinymlaas.selector" -}}
{{- $top := index . 0 -}}
app.kubernetes.io/name: {{ $top.Chart.Name }}
app.kubernetes.io/instance: {{ $top.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "tinymlaas.labels" -}}
{{- $top := index . 0 -}}
{{ include "tinymlaas.selector" . }}
app.kubernetes.io/part-of: tinymlaas
app.kubernetes.io/managed-by: {{ $top.Release.Service }}
app.kubernetes.io/version: {{ $top.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $top.Chart.Name $top.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Image of the suite: (list $ "gateway"). */}}
{{- define "tinymlaas.image" -}}
{{- $top := index . 0 }}{{ $name := index . 1 -}}
{{- $image := $top.Values.image -}}
{{- with $image.registry }}{{ . }}/{{ end }}{{ $image.repository }}/{{ $name }}
{{- with index $top.Values.digests $name }}@{{ . }}{{ else }}:{{ default $top.Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{- define "tinymlaas.secret" -}}
{{ default (printf "%s-generated" (include "tinymlaas.fullname" .)) .Values.secrets.existing }}
{{- end }}

{{- define "tinymlaas.vendorSecret" -}}
{{ include "tinymlaas.fullname" . }}-vendor-plugins
{{- end }}

{{- /* What every pod has: no token of the API server, no root, the default seccomp profile. */}}
{{- define "tinymlaas.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
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
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "tinymlaas.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ . }}
  runAsGroup: {{ . }}
  fsGroup: {{ . }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tinymlaas.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- /* Spread over nodes: (list $ "component"). */}}
{{- define "tinymlaas.spread" -}}
{{- $top := index . 0 -}}
{{- if $top.Values.topologySpread.enabled }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ $top.Values.topologySpread.topologyKey }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "tinymlaas.selector" . | nindent 8 }}
{{- end }}
{{- end }}

{{- /* Settings of every service: (list $ "component" port extra-env). */}}
{{- define "tinymlaas.env" -}}
{{- $top := index . 0 }}{{ $component := index . 1 -}}
- {name: TINYMLAAS_LISTEN, value: "0.0.0.0:{{ index . 2 }}"}
- {name: TINYMLAAS_HEALTH_LISTEN, value: "0.0.0.0:7090"}
- {name: TINYMLAAS_LOG_FORMAT, value: json}
- {name: TINYMLAAS_LOG_LEVEL, value: {{ $top.Values.logLevel }}}
{{- with $top.Values.otlpEndpoint }}
- {name: TINYMLAAS_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- if $top.Values.metrics.port }}
- {name: TINYMLAAS_METRICS_LISTEN, value: "0.0.0.0:{{ $top.Values.metrics.port }}"}
{{- end }}
{{- if $top.Values.tls.enabled }}
- {name: TINYMLAAS_TLS_CERTIFICATE_FILE, value: /etc/tinymlaas/tls/tls.crt}
- {name: TINYMLAAS_TLS_KEY_FILE, value: /etc/tinymlaas/tls/tls.key}
- {name: TINYMLAAS_TLS_CA_FILE, value: /etc/tinymlaas/tls/ca.crt}
- {name: TINYMLAAS_TLS_DOMAIN, value: {{ $top.Values.tls.domain }}}
{{- end }}
{{- range $name, $value := index . 3 }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "tinymlaas.ports" -}}
- {name: health, containerPort: 7090}
{{- if .Values.metrics.port }}
- {name: metrics, containerPort: {{ .Values.metrics.port }}}
{{- end }}
{{- end }}

{{- define "tinymlaas.probes" -}}
startupProbe:
  grpc: {port: 7090}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 90
readinessProbe:
  grpc: {port: 7090}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  grpc: {port: 7090}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 3
{{- end }}

{{- /* Services and DNS are told of a pod's end before its server stops taking calls. */}}
{{- define "tinymlaas.leave" -}}
lifecycle:
  preStop: {exec: {command: [/opt/tinymlaas/bin/python, -c, "import time; time.sleep(5)"]}}
{{- end }}

{{- /* Certificate of a service: volume and mount, (list $ "component"). */}}
{{- define "tinymlaas.tlsVolume" -}}
{{- $top := index . 0 -}}
{{- if $top.Values.tls.enabled }}
- name: tls
  secret: {secretName: {{ $top.Values.tls.secretPrefix }}{{ index . 1 }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "tinymlaas.tlsMount" -}}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /etc/tinymlaas/tls, readOnly: true}
{{- end }}
{{- end }}

{{- /* SQLAlchemy URL of a database as TINYMLAAS_DATABASE_URL: (list $ "registry"). */}}
{{- define "tinymlaas.database" -}}
{{- $top := index . 0 }}{{ $name := index . 1 -}}
{{- if $top.Values.postgresql.bundled }}
- name: DATABASE_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "tinymlaas.secret" $top }}, key: database-password}}
- name: TINYMLAAS_DATABASE_URL
  value: postgresql://tinymlaas:$(DATABASE_PASSWORD)@{{ include "tinymlaas.fullname" $top }}-postgresql:5432/{{ $name }}
{{- else if $top.Values.postgresql.external.urlSecret }}
- name: TINYMLAAS_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ $top.Values.postgresql.external.urlSecret }}, key: {{ $name }}}}
{{- end }}
{{- end }}

{{- /* A token of the release's Secret as a file's content in an environment variable: (list $ VARIABLE key). */}}
{{- define "tinymlaas.token" -}}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ include "tinymlaas.secret" (index . 0) }}, key: {{ index . 2 }}}}
{{- end }}

{{- define "tinymlaas.s3" -}}
{{- if .Values.s3.bundled }}
- {name: TINYMLAAS_S3_ENDPOINT, value: "http://{{ include "tinymlaas.fullname" . }}-minio:9000"}
{{- include "tinymlaas.s3keys" (include "tinymlaas.secret" .) }}
{{- else if .Values.s3.external.endpoint }}
- {name: TINYMLAAS_S3_ENDPOINT, value: {{ .Values.s3.external.endpoint | quote }}}
{{- include "tinymlaas.s3keys" .Values.s3.external.secret }}
{{- if .Values.s3.external.caSecret }}
- {name: TINYMLAAS_S3_CA_FILE, value: /etc/tinymlaas/s3/ca.crt}
{{- end }}
{{- end }}
- {name: TINYMLAAS_S3_BUCKET, value: {{ .Values.s3.bucket }}}
{{- with .Values.s3.region }}
- {name: TINYMLAAS_S3_REGION, value: {{ . }}}
{{- end }}
{{- end }}

{{- define "tinymlaas.s3keys" }}
- name: TINYMLAAS_S3_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: s3-access-key}}
- name: TINYMLAAS_S3_SECRET_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: s3-secret-key}}
{{- end }}

{{- /* A PodDisruptionBudget: (list $ "component" replicas). One replica may always go, or a node could never be drained. */}}
{{- define "tinymlaas.pdb" -}}
{{- $top := index . 0 -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "tinymlaas.fullname" $top }}-{{ index . 1 }}
  labels: {{- include "tinymlaas.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "tinymlaas.selector" . | nindent 6 }}
{{- end }}
