{{/* Fills an empty volume from a snapshot. Every pod makes the same cluster of the same snapshot, each its own
directory. Not after restore.until: a volume that was lost meanwhile holds the only memory of what its member
voted and acknowledged, and a copy of the snapshot under the same identity would pass for it. */}}
{{- define "raftkv.restore" -}}
- name: restore
  image: {{ include "raftkv.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command:
    - /bin/sh
    - -euc
    - |
      if [ -e "$RAFTKV_DATA_DIR/restore-unfinished" ]; then
        rm -rf "$RAFTKV_DATA_DIR"  # an attempt that was cut short; no node has run on it
      fi
      if [ -e "$RAFTKV_DATA_DIR/identity.json" ]; then
        echo "$RAFTKV_DATA_DIR holds a member's data already: nothing to restore"
        exit 0
      fi
      if [ "$(date +%s)" -ge "$(date -d "$UNTIL" +%s)" ]; then
        echo "it is later than $UNTIL (restore.until): the volume stays empty"
        exit 0
      fi
      exec raftkv restore --data-dir "$RAFTKV_DATA_DIR" --only "$RAFTKV_NAME" "$@"
    - restore
    - --from={{ .Values.restore.from | default .Values.snapshots.url }}
    - --id={{ .Values.restore.snapshot }}
    {{- with .Values.restore.toRevision }}
    - --to-revision={{ include "raftkv.text" . }}
    {{- end }}
    - --new-cluster-id={{ .Values.restore.newClusterId }}
    {{- range $ordinal := until (int .Values.replicas) }}
    - --member={{ include "raftkv.member" (dict "root" $ "ordinal" $ordinal) }}
    {{- end }}
  securityContext: {{- include "raftkv.containerSecurity" . | nindent 4 }}
  env:
    {{- include "raftkv.nodeEnv" . | nindent 4 }}
    - name: UNTIL
      value: {{ .Values.restore.until | quote }}
    {{- if .Values.snapshots.ceph.existingSecret }}
    - name: RAFTKV_CEPH_CONF
      value: /etc/raftkv/ceph/ceph.conf
    - name: RAFTKV_CEPH_KEYRING
      value: /etc/raftkv/ceph/keyring
    - name: RAFTKV_CEPH_USER
      value: {{ .Values.snapshots.ceph.user | quote }}
    {{- end }}
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources: {{- toYaml .Values.resources | nindent 4 }}
  volumeMounts:
    {{- include "raftkv.nodeMounts" . | nindent 4 }}
{{- end -}}
