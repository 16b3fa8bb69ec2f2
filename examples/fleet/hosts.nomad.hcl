# A host of a fleet on every Nomad client that has /dev/kvm. Nobody has run it yet: take it as a
# start. The servers are expected at nats-1 to nats-3; seeds and the authority's file on each client.
# A client's own configuration must allow two things that it refuses by default:
#   client { max_kill_timeout = "10m" }                 # 30s cuts kill_timeout, and so what drain_s waits for
#   plugin "raw_exec" { config { enabled = true } }
# Nomad has no hook before a stop: `mayfly fleet drain NAME --wait 60` first lets long runs move to other hosts.
job "mayfly-host" {
  type = "system"

  constraint {
    attribute = "${meta.kvm}"
    value     = "true"
  }

  group "host" {
    task "serve" {
      driver       = "raw_exec"
      user         = "mayfly"
      kill_signal  = "SIGTERM"
      kill_timeout = "10m" # longer than drain_s

      config {
        command = "/opt/mayfly/bin/mayfly"
        args = [
          "serve",
          "--join", "tls://nats-1:4222", "--join", "tls://nats-2:4222", "--join", "tls://nats-3:4222",
          "--name", "${node.unique.name}",
          "--fleet-seed", "/etc/mayfly/host.seed", "--fleet-ca", "/etc/mayfly/ca.pem",
          "--drain-s", "500",
        ]
      }

      resources {
        cpu    = 4000
        memory = 8192
      }
    }
  }
}
