# shellcheck shell=bash disable=SC2034
# The configuration the mesh is driven by: Envoy's, in files, as a control plane would send it. To be sourced after pods.sh.

write_configuration() {
  write_bootstrap >"$STATE/bootstrap.yaml"
  write_pods >"$STATE/pods.yaml"
  write_listeners >"$STATE/lds.yaml"
  write_clusters >"$STATE/cds.yaml"
  write_endpoints reviews-v1 >"$STATE/eds-reviews-v1.yaml"
  write_endpoints reviews-v2 >"$STATE/eds-reviews-v2.yaml"
  set_weights 99 1
  note "configuration: $STATE/*.yaml"
}

# set_weights V1 V2: the route configuration is replaced by a rename, so that nobody reads half of it.
set_weights() {
  write_routes "$1" "$2" >"$STATE/rds.yaml.new"
  mv "$STATE/rds.yaml.new" "$STATE/rds.yaml"
}

router() {
  echo '[{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]'
}

file_source() { echo "{path_config_source: {path: $STATE/$1}, resource_api_version: V3}"; }

write_bootstrap() {
  cat <<END
node: {id: quickstart, cluster: quickstart}
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 0}} # any free port
dynamic_resources:
  lds_config: $(file_source lds.yaml)
  cds_config: $(file_source cds.yaml)
END
}

write_pods() {
  local pod
  echo pods:
  for pod in "${PODS[@]}"; do
    cat <<END
- name: $pod
  netns: /run/netns/$(pod_namespace "$pod")
  cgroup: $(pod_cgroup "$pod")
  policy: permissive
  outbound: outbound
END
    # The client serves nothing: what comes to it is left alone.
    case $pod in
      reviews-*) echo "  inbound: inbound-$pod" ;;
      *) echo '  inbound: "off"' ;;
    esac
  done
}

write_listeners() {
  cat <<END
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: outbound
  traffic_direction: OUTBOUND
  bind_to_port: false # entered by captured connections only
  address: {socket_address: {address: 0.0.0.0, port_value: 15001}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: outbound
        rds: {route_config_name: outbound, config_source: $(file_source rds.yaml)}
        http_filters: $(router)
END
  write_inbound_listener reviews-v1 15006
  write_inbound_listener reviews-v2 15007
}

write_inbound_listener() {
  cat <<END
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: inbound-$1
  traffic_direction: INBOUND
  bind_to_port: false
  address: {socket_address: {address: 0.0.0.0, port_value: $2}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: inbound
        route_config:
          name: inbound
          virtual_hosts:
          - name: application
            domains: ["*"]
            routes: [{match: {prefix: /}, route: {cluster: inbound-$1}}]
        http_filters: $(router)
END
}

# The versions of reviews are found by EDS, from files; the application beside an inbound listener has a fixed address.
write_clusters() {
  local pod
  echo resources:
  for pod in reviews-v1 reviews-v2; do
    cat <<END
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: $pod
  type: EDS
  connect_timeout: 1s
  eds_cluster_config: {eds_config: $(file_source "eds-$pod.yaml")}
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: inbound-$pod
  type: STATIC
  connect_timeout: 1s
  load_assignment:
    cluster_name: inbound-$pod
    endpoints: [{lb_endpoints: [$(endpoint "$pod")]}]
END
  done
}

write_endpoints() {
  cat <<END
resources:
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: $1
  endpoints: [{lb_endpoints: [$(endpoint "$1")]}]
END
}

endpoint() {
  echo "{endpoint: {address: {socket_address: {address: $(pod_ip "$1"), port_value: $SERVICE_PORT}}}}"
}

write_routes() {
  cat <<END
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: outbound
  virtual_hosts:
  - name: reviews
    domains: ["reviews", "reviews:$SERVICE_PORT", "$SERVICE_IP:$SERVICE_PORT"]
    routes:
    - match:
        prefix: /
        headers:
        - name: cookie
          string_match: {safe_regex: {regex: '^(.*?;)?\s*(user=jason)(;.*)?$'}}
      route: {cluster: reviews-v2}
    - match: {prefix: /}
      route:
        weighted_clusters:
          clusters:
          - {name: reviews-v1, weight: $1}
          - {name: reviews-v2, weight: $2}
END
}
