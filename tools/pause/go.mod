// The pause container: holds the namespaces of a pod.
module build-image/tools/pause

go 1.24
