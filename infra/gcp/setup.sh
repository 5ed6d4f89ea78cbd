#!/usr/bin/env bash
# Creates what infra/gcp/cluster.yaml names, once for a project, and writes runs/gcp.yaml. It may be run again at any
# time: what exists stays unchanged. While idle, only the disk (50 GB) and the address translation (NAT) cost money.
#
#     infra/gcp/setup.sh PROJECT REGION ZONE BUCKET [RESERVATION]
#
# infra/gcp/teardown.sh removes everything but the bucket and the disk.
set -euo pipefail

if [[ $# -lt 4 || $# -gt 5 ]]; then
  echo "usage: $0 PROJECT REGION ZONE BUCKET [RESERVATION]" >&2
  exit 2
fi
project=$1 region=$2 zone=$3 bucket=$4 reservation=${5:-}
cd "$(dirname "$0")/../.."

key=~/.ssh/vit-ray
token=~/.ray/auth_token
head=vit-head@$project.iam.gserviceaccount.com
worker=vit-worker@$project.iam.gserviceaccount.com
# The complete rights of the autoscaler on the head: start, list and delete machines of this project.
permissions=compute.disks.create,compute.instances.create,compute.instances.delete,compute.instances.get
permissions+=,compute.instances.list,compute.instances.setLabels,compute.instances.setMetadata
permissions+=,compute.instances.setServiceAccount,compute.instances.setTags,compute.subnetworks.use
permissions+=,compute.zoneOperations.get

cat <<PLAN
In the project $project this creates what does not exist yet:
  network, subnetwork, router and address translation "vit" in $region; no machine gets a public address
  two firewall rules: machines tagged vit-ray reach each other; Google's identity-aware proxy reaches their ports 22
  and 5000
  bucket gs://$bucket, closed to the public; image repository "vit"; disk "vit-mlflow" in $zone
  accounts vit-head and vit-worker, which may read and write objects of this bucket only, read the images and Ray's
  token, and write logs; vit-head may also start and delete machines
  secret "vit-ray-token", a copy of it in $token for your own commands, and the SSH key $key
PLAN

run() {
  echo "+ $*" >&2
  "$@"
}

# make DESCRIBE-COMMAND -- CREATE-COMMAND: creates the object unless the first command finds it.
make() {
  local describe=()
  while [[ $1 != -- ]]; do
    describe+=("$1")
    shift
  done
  shift
  if "${describe[@]}" >/dev/null 2>&1; then
    echo "  exists: ${describe[*]}"
  else
    run "$@"
  fi
}

gcp() { gcloud --project="$project" --quiet "$@"; }

run gcp services enable artifactregistry.googleapis.com compute.googleapis.com iam.googleapis.com iap.googleapis.com \
  secretmanager.googleapis.com storage.googleapis.com

make gcp compute networks describe vit -- gcp compute networks create vit --subnet-mode=custom
make gcp compute networks subnets describe vit --region="$region" -- \
  gcp compute networks subnets create vit --region="$region" --network=vit --range=10.10.0.0/20 \
  --enable-private-ip-google-access
make gcp compute routers describe vit --region="$region" -- \
  gcp compute routers create vit --region="$region" --network=vit
make gcp compute routers nats describe vit --router=vit --region="$region" -- \
  gcp compute routers nats create vit --router=vit --region="$region" --auto-allocate-nat-external-ips \
  --nat-all-subnet-ip-ranges
make gcp compute firewall-rules describe vit-internal -- \
  gcp compute firewall-rules create vit-internal --network=vit --allow=tcp,udp,icmp --source-tags=vit-ray \
  --target-tags=vit-ray
# The range is that of the identity-aware proxy: https://cloud.google.com/iap/docs/using-tcp-forwarding
make gcp compute firewall-rules describe vit-iap -- \
  gcp compute firewall-rules create vit-iap --network=vit --allow=tcp:22,tcp:5000 --source-ranges=35.235.240.0/20 \
  --target-tags=vit-ray

make gcp storage buckets describe "gs://$bucket" -- \
  gcp storage buckets create "gs://$bucket" --location="$region" --uniform-bucket-level-access \
  --public-access-prevention
make gcp artifacts repositories describe vit --location="$region" -- \
  gcp artifacts repositories create vit --location="$region" --repository-format=docker
make gcp compute disks describe vit-mlflow --zone="$zone" -- \
  gcp compute disks create vit-mlflow --zone="$zone" --size=50GB --type=pd-balanced

make gcp iam service-accounts describe "$head" -- gcp iam service-accounts create vit-head
make gcp iam service-accounts describe "$worker" -- gcp iam service-accounts create vit-worker
make gcp iam roles describe vitRayHead -- \
  gcp iam roles create vitRayHead --title="Ray head: starts and deletes workers" --permissions="$permissions"

make gcp secrets describe vit-ray-token -- gcp secrets create vit-ray-token --replication-policy=automatic
if ! gcp secrets versions describe latest --secret=vit-ray-token >/dev/null 2>&1; then
  echo "+ add a random token to the secret vit-ray-token"
  openssl rand -hex 32 | tr -d '\n' | gcp secrets versions add vit-ray-token --data-file=-
fi

run gcp projects add-iam-policy-binding "$project" --member="serviceAccount:$head" \
  --role="projects/$project/roles/vitRayHead" --condition=None >/dev/null
run gcp iam service-accounts add-iam-policy-binding "$worker" --member="serviceAccount:$head" \
  --role=roles/iam.serviceAccountUser >/dev/null
for account in "$head" "$worker"; do
  run gcp projects add-iam-policy-binding "$project" --member="serviceAccount:$account" \
    --role=roles/logging.logWriter --condition=None >/dev/null
  run gcp storage buckets add-iam-policy-binding "gs://$bucket" --member="serviceAccount:$account" \
    --role=roles/storage.objectUser >/dev/null
  run gcp artifacts repositories add-iam-policy-binding vit --location="$region" --member="serviceAccount:$account" \
    --role=roles/artifactregistry.reader >/dev/null
  run gcp secrets add-iam-policy-binding vit-ray-token --member="serviceAccount:$account" \
    --role=roles/secretmanager.secretAccessor >/dev/null
done

umask 077
mkdir -p "$(dirname "$key")" "$(dirname "$token")"
if [[ ! -e $key ]]; then
  run ssh-keygen -q -t ed25519 -N "" -C ray -f "$key"
fi
if [[ -e $token ]] && ! gcp secrets versions access latest --secret=vit-ray-token | cmp --silent - "$token"; then
  echo "$token holds another cluster's token: kept. For this cluster, set RAY_AUTH_TOKEN_PATH=~/.ray/vit_token" >&2
  token=~/.ray/vit_token
fi
gcp secrets versions access latest --secret=vit-ray-token >"$token"

mkdir -p runs
sed -e "s|YOUR-PROJECT|$project|g" -e "s|YOUR-REGION|$region|g" -e "s|YOUR-ZONE|$zone|g" \
  -e "s|YOUR-SSH-PUBLIC-KEY|$(cat "$key.pub")|g" ${reservation:+-e "s|YOUR-RESERVATION|$reservation|g"} \
  infra/gcp/cluster.yaml >runs/gcp.yaml
echo "wrote runs/gcp.yaml; next: build and push the image, then run PYTHONPATH=. ray up runs/gcp.yaml"
