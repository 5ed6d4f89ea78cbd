#!/usr/bin/env bash
# Removes what infra/gcp/setup.sh created, except the bucket and the disk, which hold your work: it prints the commands
# that delete those. End the cluster first: PYTHONPATH=. ray down runs/gcp.yaml
#
#     infra/gcp/teardown.sh PROJECT REGION ZONE BUCKET
set -euo pipefail

if [[ $# -ne 4 ]]; then
  echo "usage: $0 PROJECT REGION ZONE BUCKET" >&2
  exit 2
fi
project=$1 region=$2 zone=$3 bucket=$4

gcp() { gcloud --project="$project" --quiet "$@"; }

if [[ -n $(gcp compute instances list --filter="tags.items=vit-ray" --format="value(name)") ]]; then
  echo "machines of the cluster still run; first run PYTHONPATH=. ray down runs/gcp.yaml" >&2
  exit 1
fi

# remove COMMAND: runs a delete command and prints it; a failure does not stop the script.
remove() {
  echo "+ $*"
  "$@" || echo "  not removed: see above" >&2
}

remove gcp compute firewall-rules delete vit-internal vit-iap
remove gcp compute routers delete vit --region="$region"
remove gcp compute networks subnets delete vit --region="$region"
remove gcp compute networks delete vit
for account in vit-head vit-worker; do
  member=serviceAccount:$account@$project.iam.gserviceaccount.com
  remove gcp projects remove-iam-policy-binding "$project" --condition=None --member="$member" \
    --role=roles/logging.logWriter
done
remove gcp projects remove-iam-policy-binding "$project" --condition=None \
  --member="serviceAccount:vit-head@$project.iam.gserviceaccount.com" --role="projects/$project/roles/vitRayHead"
remove gcp iam roles delete vitRayHead
remove gcp iam service-accounts delete "vit-head@$project.iam.gserviceaccount.com"
remove gcp iam service-accounts delete "vit-worker@$project.iam.gserviceaccount.com"
remove gcp secrets delete vit-ray-token
remove gcp artifacts repositories delete vit --location="$region"

cat <<LEFT
Not removed, because they hold checkpoints, data and MLflow's history:
  gcloud storage rm --recursive gs://$bucket
  gcloud compute disks delete vit-mlflow --zone=$zone --project=$project
LEFT
